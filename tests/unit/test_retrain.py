"""`retrain`: once for what has changed, however many ask, and whoever died on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import document, write_csv
from finished import finished
from kfp_server import KfpServer, serving

from pipelines.kfp_client import Access, Kfp
from pipelines.retrain import Found, retrain
from pipelines.submit import Submission
from trainer import outcomes
from trainer.check import load_spec
from trainer.errors import UserError
from trainer.spec import JointSpec
from trainer.stores import open_store


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serving() as state:
        yield state


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., JointSpec]:
    write_csv(tmp_path / "table.csv", rows=20)

    def load(**changes: Any) -> JointSpec:
        made = document(**changes)
        made["data"]["table"]["uri"] = str(tmp_path / "table.csv")
        return load_spec(made)

    return load


@pytest.fixture
def ask(tmp_path: Path, server: KfpServer) -> Callable[..., Found]:
    said: list[str] = []

    def now(spec: JointSpec, **more: Any) -> Found:
        return retrain(spec, Submission(str(tmp_path / "runs")), lambda: Kfp(Access(server.url)), said.append, **more)

    now.said = said  # type: ignore[attr-defined]
    return now


def claim(tmp_path: Path, key: str) -> dict[str, Any]:
    return json.loads((tmp_path / "runs" / "claims" / f"{key}.json").read_text())


def test_a_run_that_has_finished_is_found_without_the_server(spec, ask, server, tmp_path):
    key = outcomes.run_key(spec(), outcomes.data_digests(spec()))
    finished(str(tmp_path / "runs"), key, "")
    found = ask(spec())
    assert found.key == key
    assert found.done
    assert not server.requests


def test_what_changed_is_submitted_once(spec, ask, server):
    first, again = ask(spec()), ask(spec())
    assert first.submitted
    assert again.submitted is None
    assert first.run == again.run == next(iter(server.runs))
    assert len(server.runs) == 1
    assert json.loads(server.runs[first.run]["runtime_config"]["parameters"]["spec"]) == spec().to_json()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 3}, {"train": {"batch": 16}}, {"compare": {"resamples": 300}}, {"tasks": None}, {"name": "other"}, {"data": "rows"}],
)
def test_another_document_or_other_data_is_another_key(changes, spec, tmp_path):
    before = outcomes.run_key(spec(), outcomes.data_digests(spec()))
    if changes == {"data": "rows"}:
        with (tmp_path / "table.csv").open("a") as file:
            file.write("0.5,0.5,left,1.0\n")
        changes = {}
    if changes == {"tasks": None}:
        tasks = document()["tasks"]
        changes = {"tasks": tasks | {"side": tasks["side"] | {"metrics": ["auroc"]}}}
    changed = spec(**changes)
    assert outcomes.run_key(changed, outcomes.data_digests(changed)) != before


@pytest.mark.parametrize("changes", [{"observe": {"port": 9400}}, {"cluster": {"processes_per_node": 1, "queue": "night"}}])
def test_where_it_runs_and_how_it_is_watched_is_not_part_of_the_key(changes, spec):
    digests = outcomes.data_digests(spec())
    assert outcomes.run_key(spec(), digests) == outcomes.run_key(spec(**changes), digests)


def test_other_code_is_another_key(spec, monkeypatch):
    before = outcomes.run_key(spec(), {})
    monkeypatch.setattr(outcomes, "code_version", lambda stage: "other" if stage == "score" else "same")
    one = outcomes.run_key(spec(), {})
    monkeypatch.setattr(outcomes, "code_version", lambda stage: "same")
    assert len({before, one, outcomes.run_key(spec(), {})}) == 3


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_died_is_replaced(state, spec, ask, server):
    first = ask(spec())
    server.finish(first.run, state)
    second = ask(spec())
    assert second.submitted
    assert second.run != first.run
    assert f"ended as {state}: submitting anew" in ask.said[0]


def test_a_run_that_was_deleted_is_replaced(spec, ask, server):
    first = ask(spec())
    del server.runs[first.run]
    assert ask(spec()).run != first.run
    assert "is gone: submitting anew" in ask.said[0]


def test_a_run_of_an_image_with_other_code_counts_for_what_it_was_submitted_for(spec, ask, server, tmp_path):
    first = ask(spec())
    finished(str(tmp_path / "runs"), "the-key-of-that-image", first.run)
    server.finish(first.run)
    second = ask(spec())
    assert second.done
    assert len(server.runs) == 1


def test_a_run_whose_results_were_removed_is_done_again(spec, ask, server, tmp_path):
    first = ask(spec())
    finished(str(tmp_path / "runs"), first.key, first.run)
    server.finish(first.run)
    assert ask(spec()).done
    open_store(str(tmp_path / "runs")).delete("results")
    assert ask(spec()).submitted


def test_a_claim_is_given_up_when_its_run_is_refused(spec, ask, server, tmp_path):
    with pytest.raises(UserError, match="10,000"):
        ask(spec(models={"trunk": {"kind": "mlp", "hidden": [8] * 4000}}))
    assert not list(open_store(str(tmp_path / "runs")).list("claims"))


def test_a_claim_of_one_who_died_before_there_was_a_run_is_taken_over(spec, ask, server, tmp_path):
    key = ask(spec()).key
    server.runs.clear()
    open_store(str(tmp_path / "runs")).write(f"claims/{key}.json", b'{"key": "", "by": "dead:1", "at": 1e12, "run": ""}')
    found = ask(spec(), stale_s=0.2)
    assert found.submitted
    assert claim(tmp_path, key)["run"] == found.run


def test_a_run_of_one_who_died_before_it_could_say_so_is_adopted(spec, ask, server, tmp_path):
    first = ask(spec())
    open_store(str(tmp_path / "runs")).write(f"claims/{first.key}.json", b'{"key": "", "by": "dead:1", "at": 1e12, "run": ""}')
    found = ask(spec(), stale_s=0.2)
    assert found.submitted is None
    assert found.run == first.run
    assert len(server.runs) == 1


def test_a_claim_that_is_rubbish_is_nobodys(spec, ask, server, tmp_path):
    key = ask(spec()).key
    server.runs.clear()
    open_store(str(tmp_path / "runs")).write(f"claims/{key}.json", b"{")
    assert ask(spec()).submitted


def test_many_who_ask_at_once_get_one_run(spec, ask, server):
    found: list[Found] = []
    threads = [threading.Thread(target=lambda: found.append(ask(spec()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.runs) == 1
    assert len(found) == 6
    assert {one.run for one in found} == set(server.runs)
    assert sum(one.submitted is not None for one in found) == 1
