"""What the loop does with a run of one rank: early stopping, phases, frozen models, and what a run says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_inputs import TASKS, Trained, ask, copy_data, document, same_bits
from training_rank import train_job

from trainer.errors import DataError
from trainer.joint import build
from trainer.requests import read_request
from trainer.run import Run
from trainer.world import World


@pytest.fixture
def train(tmp_path: Path):
    """The run of a document, in a folder of its own."""

    def go(**changes: Any) -> Trained:
        request = ask(document(**changes), tmp_path)
        train_job({"root": str(tmp_path), "key": request["key"]}, World(0, 1, 0, torch.device("cpu")))
        return Trained(tmp_path, request["key"])

    return go


SHARP = {"optimizer": {"kind": "sgd", "lr": 0.9}, "schedule": {"kind": "constant", "warmup": 0}, "clip": None, "validate_every": 3}


def test_early_stopping_ends_a_phase_and_keeps_its_best_parameters(train) -> None:
    tasks = {"plant": TASKS["plant"]}
    stopped = train(tasks=tasks, phases={"joint": {"steps": 600}}, train=SHARP | {"early_stop": {"patience": 4, "min_delta": 0.0}})
    (steps,) = stopped.result["steps"].values()
    assert steps < 600 == stopped.result["steps_planned"]["joint"]
    assert stopped.result["task_steps"] == {"plant": steps}
    losses = [loss["plant"] for loss in stopped.losses("valid")]
    best = losses.index(min(losses))
    assert len(losses) == steps // 3 == best + 1 + 4
    # the parameters are those of the step with the least loss: a run that ends there has them
    until = train(tasks=tasks, phases={"joint": {"steps": 3 * (best + 1)}}, train=SHARP)
    assert same_bits(stopped.params, until.params)


def test_without_early_stopping_the_last_parameters_are_kept(train) -> None:
    found = train(tasks={"plant": TASKS["plant"]}, phases={"joint": {"steps": 60}}, train=SHARP)
    assert found.result["steps"] == {"joint": 60}
    losses = [loss["plant"] for loss in found.losses("valid")]
    assert min(losses) < losses[-1]  # so that early stopping would have kept others


def test_a_phase_goes_on_from_the_parameters_of_the_one_before(train) -> None:
    one = train(phases={"first": {"tasks": ["plant"], "steps": 7}, "last": {"tasks": ["height", "hard"], "train": [], "steps": 1}})
    alone = train(tasks={"plant": TASKS["plant"]}, phases={"first": {"steps": 7}})
    for name, value in alone.params.items():
        assert torch.equal(one.params[name], value), name
    assert one.result["steps"] == {"first": 7, "last": 1}
    assert one.result["task_steps"] == {"plant": 7, "height": 1, "hard": 1}
    assert one.result["samples"] == 7 * 25 + 2 * 25


@pytest.mark.parametrize("learns", [[], ["other"]])
def test_models_that_are_not_named_are_frozen(train, learns: list[str]) -> None:
    found = train(
        models={"trunk": {"kind": "training_inputs:normed"}, "other": {"kind": "mlp", "hidden": [9]}},
        tasks={**TASKS, "hard": {**TASKS["hard"], "model": "other"}},
        phases={"joint": {"steps": 5, "train": learns}},
    )
    spec = document(
        models={"trunk": {"kind": "training_inputs:normed"}, "other": {"kind": "mlp", "hidden": [9]}},
        tasks={**TASKS, "hard": {**TASKS["hard"], "model": "other"}},
    )
    initial = build(spec, found.result["fitted"], seed=0).state_dict()
    moved = {name for name, value in found.params.items() if not torch.equal(value, initial[name])}
    assert {name.split(".")[1] for name in moved if name.startswith("models.")} == set(learns)  # running statistics are frozen too
    assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == set(TASKS)


def test_the_same_request_trains_the_same_bits_and_another_seed_others(train, tmp_path: Path) -> None:
    request = ask(document(models={"trunk": {"kind": "mlp", "hidden": [8], "dropout": 0.3}}, seeds=1), tmp_path)
    found = []
    for where, seed in (("a", 0), ("b", 0), ("c", 1)):
        root = copy_data(tmp_path, tmp_path / where)
        (root / "requests" / "train" / f"{request['key']}.json").write_text(json.dumps(request | {"seed": seed}))
        train_job({"root": str(root), "key": request["key"]}, World(0, 1, 0, torch.device("cpu")))
        found.append(Trained(root, request["key"]).params)
    assert same_bits(found[0], found[1])
    assert not same_bits(found[0], found[2])


def test_curves_are_valid_json_with_a_loss_and_a_weight_for_each_task_seen(train) -> None:
    found = train(phases={"joint": {"steps": 200, "mixer": "round_robin"}})
    records = [record for record in found.history if record["split"] == "train"]
    assert 50 <= len(records) <= 101
    assert records[-1]["step"] == 200
    assert [record["step"] for record in records] == sorted({record["step"] for record in records})
    assert {name for record in records for name in record["loss"]} == set(TASKS)
    assert all(record["loss"].keys() == record["weight"].keys() for record in records)
    assert all(record["samples"] == 25 * record["step"] for record in records)
    assert found.result["task_steps"] == {"plant": 100, "height": 100, "hard": 100}


def test_a_run_that_diverges_says_null_and_not_nan(train) -> None:
    wild = SHARP | {"optimizer": {"kind": "sgd", "lr": 1e9}}
    found = train(phases={"joint": {"steps": 30}}, train=wild)
    json.dumps(found.history, allow_nan=False)
    assert found.losses("valid")[-1]["height"] is None


def test_a_model_that_cannot_be_counted_is_trained_all_the_same(train, monkeypatch: pytest.MonkeyPatch) -> None:
    def sulk(*_: Any) -> int:
        raise RuntimeError("only numbers of my own")

    monkeypatch.setattr("trainer.run.flops_per_row", sulk)
    found = train(phases={"joint": {"steps": 1}})
    assert found.result["flops_per_row"] is None
    assert found.result["parameters"] == sum(value.numel() for value in found.params.values())


def test_data_that_is_not_prepared_is_the_users_to_prepare(tmp_path: Path) -> None:
    request = ask(document(), tmp_path / "asked")
    request["data"]["stones"]["key"] = "0" * 24
    with pytest.raises(DataError, match=r"data\.stones: is not prepared"):
        Run(
            read_request(str(tmp_path / "asked"), request["key"]) | request,
            str(tmp_path / "asked"),
            World(0, 1, 0, torch.device("cpu")),
            0.0,
        )
