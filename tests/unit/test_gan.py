"""A generator and its critic as a document: what `check` refuses, what alone means, what is made, judged and shown."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_inputs import ask
from training_rank import train_job

from trainer.check import load_spec
from trainer.compare import compare
from trainer.errors import DataError, SpecError
from trainer.evaluate import evaluate_task, read_predictions
from trainer.plan import independent
from trainer.predict import Predictor, load
from trainer.prepare import prepare
from trainer.publish import publish
from trainer.report_tasks import task as shown
from trainer.requests import independent_requests, joint_requests, read_request, write_request
from trainer.results import fetch
from trainer.run import Run
from trainer.spec import JointSpec
from trainer.world import World

SIDES = {"maker": "maker", "critic": "critic", "condition": ["digit"]}
DOCUMENT: dict[str, Any] = {
    "name": "gan",
    "data": {"digits": {"kind": "digits", "rows": [0, 200], "split": {"valid": 0.1, "test": 0.3},
                        "columns": {"image": {"kind": "image", "shape": [1, 8, 8], "range": [0, 16]},
                                    "digit": {"kind": "category", "classes": 10}}}},
    "models": {"maker": {"kind": "conv_generator", "shape": [1, 8, 8], "latent": 4, "channels": [8], "groups": 2},
               "critic": {"kind": "conv_critic", "channels": [4, 4]},
               "reader": {"kind": "conv", "channels": [8], "groups": 2, "grid": 1}},
    "tasks": {"digit": {"data": "digits", "model": "reader", "input": "image", "target": "digit", "metrics": ["accuracy"]},
              "spot": {"data": "digits", "objective": {"kind": "gan_spot", **SIDES}, "target": "image"},
              "fool": {"data": "digits", "objective": {"kind": "gan_fool", **SIDES, "judge": "reader"}, "target": "image"}},
    "rounds": 5,
    "phases": {"read": {"tasks": ["digit"], "steps": 1}, "spot": {"tasks": ["spot"], "steps": 2},
               "fool": {"tasks": ["fool"], "steps": 1, "syncs": [{"kind": "ema", "of": "maker"}]}},
    "train": {"batch": 16, "checkpoint": {"every_minutes": None}}, "compare": {"resamples": 100}, "cluster": {"processes_per_node": 1},
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    import copy

    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return document


WASSERSTEIN = {"kind": "gan_spot", **SIDES, "loss": "wasserstein", "gradient_penalty": 10}
FAULTS = [
    ("models.maker.shape", [1, 9, 8], "models.maker.shape: makes images of shape [1, 9, 8], and those of 'image' have [1, 8, 8]"),
    ("tasks.fool.objective.critic", "reader", "tasks.fool.objective.critic: model 'reader' (conv) gives no single number a row"),
    ("tasks.fool.objective.maker", "reader", "tasks.fool.objective.maker: model 'reader' (conv) makes no images"),
    ("tasks.fool.objective.loss", "wasserstein", "tasks.fool.objective.loss: is 'wasserstein', and task 'spot' plays against 'hinge'"),
    ("tasks.fool.objective.condition", [], "tasks.fool.objective.condition: is [], and task 'spot' plays against ['digit']"),
    ("tasks.spot.objective", {**WASSERSTEIN, "loss": "hinge", "critic": "other"}, "no model is called 'other'"),
    ("tasks.fool.target", "digit", "column 'digit' is of kind category"),
    ("phases.fool.tasks", ["fool", "spot"], "phases.fool: trains 'critic' too, which task 'fool' (gan_fool) would pull the wrong way"),
    ("phases.fool.train", ["maker", "critic"], "phases.fool: trains 'critic' too"),
    ("phases.spot.balancer", "gradnorm", "phases.spot.balancer: gradnorm weighs gradients at one representation"),
    ("phases.fool.balancer", {"kind": "equal", "probe_every": 2},
     "phases.fool.balancer.probe_every: looks at gradients at one representation, and task 'fool' (gan_fool) reads several\n    fix: remove it"),
    ("train.precision", "bf16", "train.precision: is 'bf16', and the spectral norms of model 'critic' need float32\n    fix: write fp32, or"),
    ("publish.models", ["critik"], "publish.models[0]: no model is called 'critik'\n    fix: did you mean 'critic'?"),
    ("publish.models", ["critic", "critic"], "publish.models[1]: model 'critic' is named twice"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), FAULTS, ids=[path for path, _, _ in FAULTS])
def test_what_can_not_be_a_game_is_refused_by_name(path: str, value: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(changed(path, value))
    assert said in str(caught.value)


def test_a_model_that_no_result_holds_is_not_published() -> None:
    document = changed("tasks.digit.metrics", [])
    document["tasks"]["fool"]["objective"] = {"kind": "gan_fool", **SIDES}
    document["publish"] = {"models": ["reader"]}
    with pytest.raises(SpecError, match=r"publish.models\[0\]: no task that is judged uses model 'reader', so a result does not hold it"):
        load_spec(document)


@pytest.mark.parametrize("bound", [{}, {"spectral_norm": True}, {"gradient_penalty": 10}, {"r1": 1}])
def test_a_wasserstein_critic_whose_slope_nothing_bounds_is_refused(bound: dict[str, Any]) -> None:
    document = changed("models.critic.spectral_norm", bound.get("spectral_norm", False))
    penalty = {name: value for name, value in bound.items() if name != "spectral_norm"}
    document["tasks"]["spot"]["objective"] = {"kind": "gan_spot", **SIDES, "loss": "wasserstein", **penalty}
    document["tasks"]["fool"]["objective"]["loss"] = "wasserstein"
    if bound:
        assert load_spec(document).tasks["spot"].objective.loss_kind == "wasserstein"  # type: ignore[union-attr]
        return
    with pytest.raises(SpecError) as caught:
        load_spec(document)
    assert str(caught.value) == (
        "document: tasks.spot.objective.loss: nothing bounds the slope of 'critic', so the wasserstein loss has no least value\n"
        "    fix: write gradient_penalty: 10, or spectral_norm: true in the critic"
    )


def test_the_judge_may_learn_beside_the_generator() -> None:
    phases = {"spot": {"tasks": ["spot"], "steps": 2}, "fool": {"tasks": ["fool", "digit"], "steps": 1}}
    assert load_spec(changed("phases", phases)).learning("fool")[0] == {"maker", "reader"}


def test_a_generator_without_a_critic_that_learns_is_refused() -> None:
    document = changed("phases", {name: phase for name, phase in DOCUMENT["phases"].items() if name != "spot"})
    del document["tasks"]["spot"]
    with pytest.raises(SpecError, match="no task trains its critic 'critic'"):
        load_spec(document)


@pytest.mark.parametrize(("penalty", "stage"), [("gradient_penalty", 3), ("r1", 3), ("gradient_penalty", 2)])
def test_penalties_on_gradients_are_refused_on_zero_three_alone(penalty: str, stage: int) -> None:
    document = changed("tasks.spot.objective", {"kind": "gan_spot", **SIDES, penalty: 1})
    document["train"] = {**document["train"], "zero": stage}
    if stage < 3:
        assert load_spec(document).train.zero.stage == stage
        return
    with pytest.raises(SpecError) as caught:
        load_spec(document)
    assert str(caught.value) == (
        "document: tasks.spot.objective: gan_spot differentiates a gradient, which ZeRO stage 3 can't do: it shards the parameters in between\n"
        "    fix: set train.zero.stage to 2 or less, or choose another loss"
    )


def test_alone_a_generator_meets_a_critic_that_is_trained_and_frozen() -> None:
    spec = independent(load_spec(DOCUMENT), "fool", {"digits": 120}, 0)
    assert list(spec.phases) == ["read", "spot", "fool"]
    assert spec.rounds == 1
    assert {name: phase.steps for name, phase in spec.phases.items()} == {"read": 5, "spot": 10, "fool": 5}
    assert [spec.learning(name)[0] for name in spec.phases] == [{"reader"}, {"critic"}, {"maker"}]
    assert [sync.of for sync in spec.phases["fool"].syncs] == ["maker"]
    plain = independent(load_spec(DOCUMENT), "digit", {"digits": 120}, 0)
    assert (list(plain.models), list(plain.tasks)) == (["reader"], ["digit"])


class Trained:
    """The document, trained jointly with two seeds and alone with one, and judged."""

    def __init__(self, root: Path) -> None:
        spec: JointSpec = load_spec({**DOCUMENT, "seeds": 2})
        manifest = prepare("digits", spec.data["digits"], str(root)).json("manifest.json")
        data = {"digits": {name: manifest[name] for name in ("key", "digest", "rows")}}
        alone = [request for request in independent_requests(spec, data) if request["task"] == "fool"]
        self.folders = []
        for request in [*joint_requests(spec, data), alone[0]]:
            write_request(str(root), request)
            Run(read_request(str(root), request["key"]), str(root), World(0, 1, 0, torch.device("cpu")), time.time()).run()
            self.folders.append(root / "results" / "train" / request["key"])
        found = fetch(str(root), "data", manifest["key"])
        assert found is not None
        self.data, self.spec = found.folder, spec
        champion = ("older", load(str(self.folders[1])))
        self.result = evaluate_task("fool", spec, self.folders[:2], self.folders[2:], self.data, str(root), champion)
        self.scores = self.result.json("scores.json")


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a result in which nothing but the generator is judged: its judge only helps."""
    root = tmp_path_factory.mktemp("helped")
    request = ask(load_spec(changed("tasks.digit.metrics", [])), root)
    train_job({"root": str(root), "key": request["key"]}, World(0, 1, 0, torch.device("cpu")))
    return root / "results" / "train" / request["key"]


def judged(helped: Path) -> dict[str, Any]:
    """The verdict on it, compared with nothing."""
    run = json.loads((helped / "result.json").read_text())
    spec, root = JointSpec.model_validate(run["spec"]), helped.parents[2]
    scores = evaluate_task("fool", spec, [helped], [], root / "results" / "data" / run["data"]["digits"]["key"], str(root))
    verdict: dict[str, Any] = compare(spec, [scores.folder], [run], {}, str(root)).json("verdict.json")
    return verdict


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("gan"))


def test_all_models_are_judged_by_what_one_of_them_sees(trained: Trained) -> None:
    models = trained.scores["models"]
    pairs = {
        role: read_predictions(trained.result.folder / found[-1]["predictions"]) for role, found in models.items()
    }  # the last joint one is of another seed, with a judge of its own
    truths = [target for _, target in pairs.values()]
    assert all(torch.equal(truth, truths[0]) for truth in truths)
    assert truths[0].shape == (trained.scores["rows"], 8)
    values = [[run["metrics"][metric] for metric in ("frechet", "manifold_precision", "manifold_recall")] for run in models["joint"]]
    assert all(value["low"] <= value["value"] <= value["high"] for run in values for value in run)
    # the champion is the model of the second seed: judged from raw rows it gets what it got from prepared ones
    assert models["champion"][0]["metrics"]["frechet"]["value"] == pytest.approx(values[1][0]["value"], rel=1e-3)


def test_samples_of_all_models_stand_beside_the_real_rows_in_the_report(trained: Trained) -> None:
    samples = trained.scores["samples"]
    assert list(samples) == ["real", "joint", "independent", "champion"]
    sheets = {role: np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for role, uri in samples.items()}
    assert len({sheet.shape for sheet in sheets.values()}) == 1
    assert sheets["real"].shape[1] == 10 * 9
    assert len({sheet.tobytes() for sheet in sheets.values()}) == 4
    entry = {"metric": "frechet", "joint": None}
    assert [sample["role"] for sample in shown("fool", entry, {}, trained.scores)["samples"]] == list(samples)


def pixels(predictor: Predictor, *rows: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(found["fool"]["value"]) for found in predictor.predict(list(rows), ["fool"])]


def test_a_row_is_a_class_and_a_seed_and_its_image_is_in_the_units_of_the_source(trained: Trained) -> None:
    predictor = load(str(trained.folders[0]))
    assert predictor.columns(["fool"]) == ["digit"]
    first, second, seeded, other, again = pixels(
        predictor, {"digit": 3}, {"digit": 3}, {"digit": 3, "seed": 7}, {"digit": 4, "seed": 7}, {"digit": 3, "seed": 7}
    )
    assert first.shape == (1, 8, 8)
    assert first.min() >= 0 and first.max() <= 16
    np.testing.assert_array_equal(seeded, again)
    for a, b in ((first, second), (first, seeded), (seeded, other)):
        assert np.abs(a - b).max() > 1e-3
    np.testing.assert_allclose(pixels(predictor, {"digit": 3, "seed": 7})[0], seeded, atol=1e-4)
    np.testing.assert_allclose(pixels(predictor, {"digit": 3})[0], first, atol=1e-4)


@pytest.mark.parametrize("seed", ["seven", -1, 1.5, True])
def test_what_is_no_seed_is_refused_by_its_row(trained: Trained, seed: Any) -> None:
    with pytest.raises(DataError, match=r"row 1\.seed: .* is no seed"):
        load(str(trained.folders[0])).predict([{"digit": 3}, {"digit": 3, "seed": seed}], ["fool"])


def test_a_result_has_what_its_evaluation_needs_by_name(trained: Trained) -> None:
    found = load_file(trained.folders[0] / "model.safetensors")
    assert {name.split(".")[1] for name in found} == {"maker", "critic", "reader", "digit"}
    assert any("parametrizations" in name for name in found)


@pytest.mark.parametrize("also", [[], ["critic"]])
def test_what_is_published_draws_samples_without_critic_and_judge_unless_they_are_asked_for(
    helped: Path, tmp_path: Path, also: list[str]
) -> None:
    verdict = judged(helped)
    made = publish(helped, verdict, str(tmp_path), also)
    weights, whole = load_file(Path(made.uri) / "model.safetensors"), load_file(helped / "model.safetensors")
    assert {name.split(".")[1] for name in whole} == {"maker", "critic", "reader"}
    assert {name.split(".")[1] for name in weights} == {"maker", *also}
    assert all(torch.equal(value, whole[name]) for name, value in weights.items())
    published, trained = load(f"{tmp_path}/models/gan"), load(str(helped))
    rows = [{"digit": 3, "seed": 7}, {"digit": 8}]
    assert published.predict(rows) == trained.predict(rows)
    assert publish(helped, verdict, str(tmp_path), also).version == made.version
    other = publish(helped, verdict, str(tmp_path), ["critic", "reader"])
    assert other.version != made.version
    assert load(other.uri).predict(rows) == trained.predict(rows)
    said = (Path(made.uri) / "README.md").read_text()
    assert f"models here: {', '.join(['maker', *also])}; trained beside them, and not here" in said
