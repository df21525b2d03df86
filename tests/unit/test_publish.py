"""A model that passed becomes a version, the version the champion, and nothing in between is ever seen."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from model_inputs import document, rows_of_shop, trained, verdict
from safetensors import safe_open

import trainer
from trainer.errors import CotrainError, GateFailed, StoreError
from trainer.publish import champion, publish
from trainer.results import verify, write_manifest
from trainer.stores import open_store

TESTS = Path(__file__).parents[1]
ROWS = [*rows_of_shop(3)]
FILES = ["README.md", "manifest.json", "metrics.json", "model.safetensors", "preprocessing.json", "spec.json"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[Path]:
    """Training results of one document that differ by their seed."""
    return [trained(tmp_path_factory.mktemp("results") / str(seed), seed) for seed in range(4)]


@pytest.fixture(scope="module")
def answers(results):
    """What each of them predicts."""
    return [trainer.load(str(folder)).predict(ROWS) for folder in results]


@pytest.fixture(params=["file", "s3"])
def store_uri(request, tmp_path):
    return str(tmp_path / "store") if request.param == "file" else request.getfixturevalue("s3_bucket")() + "/deep"


def in_process(*args: object) -> list[int]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, str(TESTS / "publish_process.py"), *map(str, args)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, timeout=250).stdout)


def versions(uri: str) -> set[str]:
    return {key.split("/")[3] for key in open_store(uri).list("models/shop/versions")}


def whole(uri: str, found: dict) -> bool:
    """Whether a champion's manifest is the one it names, and every file of it has its SHA-256."""
    store, base = open_store(uri), f"models/shop/versions/{found['version']}"
    seal = store.read(f"{base}/manifest.json")
    files = json.loads(seal)["files"]
    return hashlib.sha256(seal).hexdigest() == found["sha256"] and all(
        hashlib.sha256(store.read(f"{base}/{name}")).hexdigest() == entry["sha256"] for name, entry in files.items()
    )


def test_what_is_published_predicts_what_was_trained(store_uri, results, answers, tmp_path, monkeypatch):
    made = publish(results[0], verdict(), store_uri)
    assert made.champion_before is None and made.uri == f"{open_store(store_uri).uri}/models/shop/versions/{made.version}"
    found = champion(store_uri, "shop")
    assert found and found["version"] == made.version and found["uri"] == made.uri and whole(store_uri, found)
    assert [*open_store(store_uri).list()] == [
        "models/shop/champion.json",
        *(f"models/shop/versions/{made.version}/{name}" for name in FILES),
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "another machine"))
    for uri in (made.uri, made.uri + "/", f"{store_uri}/models/shop"):
        model = trainer.load(uri)
        assert (model.name, model.version) == ("shop", made.version)
        assert model.predict(ROWS) == answers[0]


def test_nothing_is_published_until_something_is(store_uri):
    assert champion(store_uri, "shop") is None
    with pytest.raises(StoreError, match="neither a published model"):
        trainer.load(f"{store_uri}/models/shop")


def test_publishing_twice_is_publishing_once(store_uri, results, tmp_path):
    first = publish(results[0], verdict(), store_uri)
    before = {key: open_store(store_uri).read(key) for key in open_store(store_uri).list()}
    again = publish(results[0], verdict(), store_uri)
    assert (again.version, again.uri, again.champion_before) == (first.version, first.uri, first.version)
    # the same model judged anew, now against itself, is not a new one
    assert publish(results[0], verdict(champion=first.version), store_uri).version == first.version
    assert {key: open_store(store_uri).read(key) for key in open_store(store_uri).list()} == before
    assert publish(results[0], verdict(), str(tmp_path / "another store")).version == first.version


def test_the_champion_moves_and_old_versions_stay(store_uri, results, answers):
    first = publish(results[0], verdict(), store_uri)
    second = publish(results[1], verdict(), store_uri)
    assert second.champion_before == first.version != second.version
    assert trainer.load(f"{store_uri}/models/shop").predict(ROWS) == answers[1]
    assert trainer.load(first.uri).predict(ROWS) == answers[0]
    back = publish(results[0], verdict(), store_uri)
    assert (back.version, back.champion_before) == (first.version, second.version)
    assert trainer.load(f"{store_uri}/models/shop").version == first.version


@pytest.mark.parametrize("harm", ["no manifest", "a file gone", "a byte changed"])
def test_a_version_that_is_not_whole_is_written_again(store_uri, results, answers, harm):
    made = publish(results[0], verdict(), store_uri)
    publish(results[1], verdict(), store_uri)
    store, base = open_store(store_uri), f"models/shop/versions/{made.version}"
    if harm == "a byte changed":
        store.write(f"{base}/model.safetensors", store.read(f"{base}/model.safetensors")[:-1] + b"x")
    else:
        store.delete(f"{base}/{'manifest.json' if harm == 'no manifest' else 'spec.json'}")
    assert publish(results[0], verdict(), store_uri).version == made.version
    assert whole(store_uri, champion(store_uri, "shop"))
    assert trainer.load(made.uri).predict(ROWS) == answers[0]


def test_a_champion_with_a_missing_file_is_mended_in_place(store_uri, results, answers):
    made = publish(results[0], verdict(), store_uri)
    open_store(store_uri).delete(f"models/shop/versions/{made.version}/spec.json")
    assert publish(results[0], verdict(), store_uri).version == made.version
    assert trainer.load(f"{store_uri}/models/shop").predict(ROWS) == answers[0]


def test_a_failed_gate_publishes_nothing_and_says_why(tmp_path, results):
    with pytest.raises(GateFailed, match=r"mood is 0\.1 worse"):
        publish(results[0], verdict(passed=False), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_damaged_result_publishes_nothing(tmp_path, results):
    copy = tmp_path / "copy"
    shutil.copytree(results[0], copy)
    (copy / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StoreError, match="differs from its SHA-256"):
        publish(copy, verdict(), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", [b"", b"x", b"[]", b"{}", b'{"version": "../../../etc"}', b"null"])
def test_a_champion_that_is_none_stops_with_its_place(tmp_path, results, text):
    store = open_store(str(tmp_path))
    store.write("models/shop/champion.json", text)
    for attempt in (
        lambda: publish(results[0], verdict(), str(tmp_path)),
        lambda: champion(str(tmp_path), "shop"),
        lambda: trainer.load(f"{tmp_path}/models/shop"),
    ):
        with pytest.raises(StoreError, match=r"champion\.json"):
            attempt()
    assert store.read("models/shop/champion.json") == text


def test_a_champion_that_leads_elsewhere_is_not_followed(tmp_path, results):
    publish(results[0], verdict(), str(tmp_path / "store"))
    path = tmp_path / "store/models/shop/champion.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "../../../../secret"}))
    with pytest.raises(StoreError, match="key"):
        trainer.load(str(path.parent))


def test_a_manifest_other_than_the_champions_is_refused(tmp_path, results):
    made = publish(results[0], verdict(), str(tmp_path))
    manifest = Path(made.uri) / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(StoreError, match="SHA-256 in champion"):
        trainer.load(f"{tmp_path}/models/shop")


def test_a_swap_that_others_always_win_ends(tmp_path, results, monkeypatch):
    from trainer.stores.file import FileStore

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(FileStore, "swap", lambda *_: False)
    with pytest.raises(CotrainError, match="another process moved it first"):
        publish(results[0], verdict(), str(tmp_path))


def test_a_swap_that_was_done_but_whose_answer_got_lost_counts(tmp_path, results, monkeypatch):
    from trainer.stores.file import FileStore

    first = publish(results[0], verdict(), str(tmp_path))
    swap = FileStore.swap
    monkeypatch.setattr(FileStore, "swap", lambda *args: swap(*args) and False)
    assert publish(results[1], verdict(), str(tmp_path)).champion_before == first.version


def test_a_publisher_killed_before_any_of_its_writes_leaves_a_whole_champion(store_uri, results, answers):
    codes = in_process("kill", store_uri, results[0], results[1])
    assert codes[-1] == 0 and set(codes[:-1]) == {-9}
    old, new = (publish(result, verdict(), f"{store_uri}/reference").version for result in results[:2])
    seen = []
    for n in range(len(codes)):
        found = champion(f"{store_uri}/{n}", "shop")
        assert found and whole(f"{store_uri}/{n}", found)
        seen.append(found["version"])
        assert trainer.load(f"{store_uri}/{n}/models/shop").predict(ROWS) == answers[0 if found["version"] == old else 1]
    moved = seen.index(new)
    assert seen == [old] * moved + [new] * (len(seen) - moved)
    if store_uri.startswith("s3://"):
        assert len(codes) == len(FILES) + 2 and moved == len(FILES) + 1  # a death before each file and before the pointer
    else:
        assert len(codes) > 3 * len(FILES) and moved < len(codes) - 1  # several before each, and after the pointer has moved
    # where it died does not matter to the next one
    for n in range(0, len(codes), 3):
        assert publish(results[1], verdict(), f"{store_uri}/{n}").version == new
        assert whole(f"{store_uri}/{n}", champion(f"{store_uri}/{n}", "shop"))


def test_publishers_that_race_all_succeed_and_one_is_champion(store_uri, results, answers):
    assert in_process("race", store_uri, *results, results[0]) == [0] * 5
    found = champion(store_uri, "shop")
    assert len(versions(store_uri)) == 4 and found["version"] in versions(store_uri)
    assert all(whole(store_uri, {"version": version, "sha256": seal_of(store_uri, version)}) for version in versions(store_uri))
    assert whole(store_uri, found)
    assert trainer.load(f"{store_uri}/models/shop").predict(ROWS) in answers


def seal_of(uri: str, version: str) -> str:
    return hashlib.sha256(open_store(uri).read(f"models/shop/versions/{version}/manifest.json")).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory, results) -> Path:
    return Path(publish(results[0], verdict(), str(tmp_path_factory.mktemp("store"))).uri)


def test_the_folder_says_all_and_holds_no_pickle(published, results):
    verify(published)
    assert json.loads((published / "metrics.json").read_text()) == verdict()
    assert json.loads((published / "spec.json").read_text()) == document().to_json()
    assert set(json.loads((published / "preprocessing.json").read_text())) == {"shop", "digits"}
    manifest = json.loads((published / "manifest.json").read_text())
    assert sorted([*manifest["files"], "manifest.json"]) == sorted(file.name for file in published.iterdir()) == FILES
    with safe_open(published / "model.safetensors", "np") as weights:
        assert {name.split(".")[0] for name in weights.keys()}  # noqa: SIM118  it is no mapping == {"models", "heads"}
    for file in published.iterdir():
        with pytest.raises(ValueError):
            pickletools.dis(file.read_bytes(), out=io.StringIO())


def test_only_the_datasets_of_the_tasks_travel(tmp_path):
    made = publish(trained(tmp_path / "one", tasks=["even"]), verdict(), str(tmp_path / "store"))
    assert set(json.loads((Path(made.uri) / "preprocessing.json").read_text())) == {"digits"}
    assert trainer.load(made.uri).tasks == ["even"]


def test_the_card_is_one_that_hugging_face_reads_and_no_network_is_asked(tmp_path, results, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made = publish(results[0], verdict(), str(tmp_path))
    card = ModelCard((Path(made.uri) / "README.md").read_text())
    assert card.data.library_name == "cotrain" and card.data.model_name == "shop"
    found = {(result.dataset_config, result.metric_type): result for result in card.data.eval_results}
    judged = verdict()["tasks"]
    assert {key: result.metric_value for key, result in found.items() if key[1] == judged[key[0]]["metric"]} == {
        (task, entry["metric"]): entry["joint"]["value"] for task, entry in judged.items()
    }
    assert ("price", "mae") not in found and found["colour", "f1_macro"].metric_value == 0.5  # what is not defined is left out
    assert {key[0]: result.task_type for key, result in found.items()} == {
        "colour": "tabular-classification", "price": "tabular-regression", "mood": "text-classification",
        "digit": "tabular-classification", "even": "tabular-classification",
    }  # fmt: skip
    assert "| mood | text | colour (category) | accuracy | 0.88 [0.8, 0.95] | 0.88 [0.7, 0.9] | worse |" in card.text
    assert "not compared" in card.text and "Trained alone, a model is better at: mood." in card.text
    assert '{"picture": ..., "sizes": ..., "shop": ..., "review text": ..., "strokes": ...}' in card.text
    assert made.version in card.text and "{{" not in card.text and str(tmp_path) not in card.text


def test_the_example_of_the_card_runs(published):
    code = (published / "README.md").read_text().split("```python\n")[1].split("```")[0]
    values = {"picture": ROWS[0]["picture"], "sizes": [1, 2, 3], "shop": 1, "review text": "a", "strokes": [1, 2]}
    for column, value in values.items():
        code = code.replace(f'"{column}": ...', f'"{column}": {value!r}')
    said = subprocess.run(
        [sys.executable, "-c", code.replace("path or s3:// URI of this folder", str(published))],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert set(eval(said.stdout)) == set(document().tasks)


def test_models_whose_names_are_alike_stay_apart(tmp_path, results):
    other = trained(tmp_path / "other")
    run = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**run, "name": "shop-2"}))
    write_manifest(other, "train", "key")
    publish(results[0], verdict(), str(tmp_path / "store"))
    publish(other, verdict(), str(tmp_path / "store"))
    assert trainer.load(str(tmp_path / "store/models/shop-2")).name == "shop-2"
    assert {key.split("/")[1] for key in open_store(str(tmp_path / "store")).list("models")} == {"shop", "shop-2"}
