"""Several models in one document: the same on any number of ranks, however sharded; held against plain float64 torch; resumed as if never stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, kl_div, linear
from training_inputs import TASKS, Trained, ask, assert_close, copy_data, document, on_ranks, same_bits
from training_rank import train_job

import trainer.run
from trainer.errors import Stopped
from trainer.joint import build
from trainer.order import Order
from trainer.requests import read_request
from trainer.results import fetch
from trainer.run import Run
from trainer.shards import Split
from trainer.spec import JointSpec
from trainer.step import joint_step
from trainer.world import World

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

SGD = {"optimizer": {"kind": "sgd", "lr": 0.1}, "clip": None}
PLANT = {"data": "plants", "model": "trunk", "input": "x", "target": "plant"}
READER = {"kind": "text_transformer", "width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
STAGES = [0, 1, 2, 3]


def mutual(zero: int = 0) -> JointSpec:
    hears = {"kind": "mutual_kl", "temperature": 2.0}
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7]}, "other": {"kind": "mlp", "hidden": [9]}},
        tasks={"a": PLANT, "b": {**PLANT, "model": "other"},
               "a_hears": {"data": "plants", "objective": {**hears, "learner": "a", "peers": ["b"]}},
               "b_hears": {"data": "plants", "objective": {**hears, "learner": "b", "peers": ["a"]}}},
        train={**SGD, "zero": zero},
    )  # fmt: skip


def pairs(zero: int, loss: str) -> JointSpec:
    sides = {"left": {"model": "trunk", "input": "x"}, "right": {"model": "reader", "input": "note"}}
    fused = {"kind": "fused", "encoders": {"x": "trunk", "note": "reader"}, "how": "late" if loss == "softmax" else "cross_attention"}
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [8]}, "reader": READER},
        tasks={"match": {"data": "plants", "objective": {"kind": "info_nce", **sides, "width": 5, "loss": loss, "temperature": 0.3}},
               "plant": {"data": "plants", "objective": {**fused, "width": 8, "heads": 2}, "target": "plant"},
               "write": {"data": "plants", "objective": {"kind": "caption", "model": "reader", "input": "note", "width": 8, "heads": 2, "layers": 1},
                         "target": "note"}},
        train={**SGD, "zero": zero, "accumulate": 1},
    )  # fmt: skip


def taught(zero: int = 0) -> JointSpec:
    """Two that label rows for each other and learn as an ensemble, and one that imitates both."""
    peers = {"trunk": {"kind": "mlp", "hidden": [16, 7]}, "other": {"kind": "mlp", "hidden": [9]}, "small": {"kind": "mlp", "hidden": [3]}}
    teach = {"kind": "cross_teach", "confidence": 0.4}
    return document(
        models=peers,
        tasks={"a": PLANT, "b": {**PLANT, "model": "other"}, "c": {**PLANT, "model": "small"},
               "a_reads": {"data": "plants", "objective": {**teach, "learner": "a", "teachers": ["b"]}, "target": "plant"},
               "b_reads": {"data": "stones", "objective": {**teach, "learner": "b", "teachers": ["a"]}},
               "both": {"data": "plants", "objective": {"kind": "ensemble", "members": ["a", "b"], "learn": True}, "target": "plant"},
               "c_asks": {"data": "stones", "objective": {"kind": "distill", "learner": "c", "teachers": ["a", "b"]}}},
        train={**SGD, "zero": zero},
    )  # fmt: skip


def rounds(zero: int = 0) -> JointSpec:
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7]}, "other": {"kind": "mlp", "hidden": [9]}},
        tasks={**TASKS, "hard": {**TASKS["hard"], "model": "other"}},
        phases={"first": {"tasks": ["plant", "height"], "steps": 2, "syncs": [{"kind": "ema", "of": "trunk", "decay": 0.5}]},
                "second": {"tasks": ["hard"], "steps": 1}},
        rounds=4, train={"zero": zero},
    )  # fmt: skip


def cases() -> dict[str, JointSpec]:
    found = {f"mutual-{stage}": mutual(stage) for stage in STAGES} | {f"rounds-{stage}": rounds(stage) for stage in STAGES}
    found |= {f"taught-{stage}": taught(stage) for stage in (0, 3)}
    return found | {f"{loss}-{stage}": pairs(stage, loss) for loss in ("softmax", "sigmoid") for stage in STAGES}


class Kinds:
    def __init__(self, root: Path) -> None:
        self.root, self.specs = root, cases()
        self.requests = {label: ask(spec, root / "asked") for label, spec in self.specs.items()}
        for where in ("one", "two"):
            copy_data(root / "asked", root / where)
        on_ranks(2, [self.job(label, "two") for label in self.specs], root / "ranks")
        for label in ("mutual-0", "taught-0", "rounds-0", "softmax-0", "sigmoid-0"):
            train_job(self.job(label, "one"), World(0, 1, 0, torch.device("cpu")))

    def job(self, label: str, where: str) -> dict[str, Any]:
        return {"label": label, "root": str(self.root / where), "key": self.requests[label]["key"]}

    def trained(self, label: str, where: str) -> Trained:
        return Trained(self.root / where, self.requests[label]["key"])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("label", list(cases()))
def test_two_ranks_with_unequal_rows_train_what_one_process_does(kinds: Kinds, label: str) -> None:
    family = label.rpartition("-")[0]
    one, two = kinds.trained(f"{family}-0", "one"), kinds.trained(label, "two")
    assert_close(two.params, one.params, atol=3e-5)
    for a, b in zip(two.losses(), one.losses(), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def columns(kinds: Kinds, label: str, *names: str) -> list[Tensor]:
    spec, request = kinds.specs[label], kinds.requests[label]
    result = fetch(str(kinds.root / "asked"), "data", request["data"]["plants"]["key"])
    fitted, split = result.json("fitted.json"), Split(result.folder, result.json("manifest.json"), "train")
    every = np.arange(len(split))
    return [spec.data["plants"].columns[name].tensor(split.gather(name, every), fitted[name]) for name in names]


def test_peers_learn_from_each_other_as_plain_torch_says(kinds: Kinds) -> None:
    spec, found = kinds.specs["mutual-0"], kinds.trained("mutual-0", "one")
    x, plant = columns(kinds, "mutual-0", "x", "plant")
    params = {name: p.detach().double().requires_grad_() for name, p in build(spec, found.result["fitted"], seed=0).named_parameters()}
    order, optimizer = Order(len(x), 0, "plants"), torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)

    def layer(h: Tensor, name: str) -> Tensor:
        return linear(h, params[f"{name}.weight"], params[f"{name}.bias"])

    for step in range(10):
        rows = order.take(25 * step, 25)
        first = gelu(layer(gelu(layer(x[rows].double(), "models.trunk.layers.0")), "models.trunk.layers.2"))
        logits = {"a": layer(first, "heads.a"), "b": layer(gelu(layer(x[rows].double(), "models.other.layers.0")), "heads.b")}
        there = plant[rows] >= 0
        total: Any = sum(cross_entropy(output[there], plant[rows][there]) for output in logits.values())
        for learner, peer in (("a", "b"), ("b", "a")):
            wanted = (logits[peer].detach() / 2).softmax(-1)
            total = total + 4 * kl_div((logits[learner] / 2).log_softmax(-1), wanted, reduction="batchmean")
        optimizer.zero_grad()
        total.backward()
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 10))
        optimizer.step()
    assert_close(found.params, {name: p.detach() for name, p in params.items()})


def stopped_and_resumed(kinds: Kinds, label: str, at: int, where: str) -> Trained:
    root = copy_data(kinds.root / "asked", kinds.root / where)
    world, calls = World(0, 1, 0, torch.device("cpu")), 0

    def step(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        world.stop_asked = calls == at
        return joint_step(*args, **named)

    request = read_request(str(root), kinds.requests[label]["key"])
    run = Run(request, str(root), world, time.time())
    with mock.patch.object(trainer.run, "joint_step", step), pytest.raises(Stopped):
        run.run()
    world.stop_asked = False
    Run(request, str(root), world, time.time()).run()
    return kinds.trained(label, where)


@pytest.mark.parametrize("at", [1, 2, 5, 9, 11])
def test_rounds_go_on_where_they_stopped_bit_for_bit(kinds: Kinds, at: int) -> None:
    found = stopped_and_resumed(kinds, "rounds-0", at, f"stopped-{at}")
    assert same_bits(found.params, kinds.trained("rounds-0", "one").params)


@pytest.mark.parametrize("label", ["taught-0", "softmax-0", "sigmoid-0"])
def test_other_kinds_do_so_too(kinds: Kinds, label: str) -> None:
    found = stopped_and_resumed(kinds, label, 4, f"stopped-{label}")
    assert same_bits(found.params, kinds.trained(label, "one").params)


def test_phases_take_turns_and_each_keeps_its_optimiser(kinds: Kinds) -> None:
    found = kinds.trained("rounds-0", "one")
    assert found.result["steps"] == {"first": 8, "second": 4}
    assert found.result["task_steps"] == {"plant": 8, "height": 8, "hard": 4}
    # two disjoint sets of models: turns change nothing about what each of them learns
    alone = document(
        models={"other": {"kind": "mlp", "hidden": [9]}}, tasks={"hard": {**TASKS["hard"], "model": "other"}},
        phases={"second": {"steps": 4}},
    )  # fmt: skip
    root = kinds.root / "turns"
    request = ask(alone, root)
    train_job({"root": str(root), "key": request["key"]}, World(0, 1, 0, torch.device("cpu")))
    expected = Trained(root, request["key"]).params
    for name, value in expected.items():
        assert torch.equal(found.params[name], value), name


def test_what_is_published_is_the_average_that_was_asked_for(kinds: Kinds) -> None:
    def without_sync() -> JointSpec:
        spec = rounds()
        return spec.model_copy(update={"phases": {n: p.model_copy(update={"syncs": []}) for n, p in spec.phases.items()}})

    spec, root = without_sync(), kinds.root / "raw"
    request = ask(spec, root)
    seen: list[dict[str, Tensor]] = []

    def step(engine: Any, *args: Any, **named: Any) -> Any:
        if not seen and "models.trunk.layers.0.weight" in dict(engine.module.named_parameters()):
            seen.append({n: p.detach().clone() for n, p in engine.module.named_parameters()})
        said = joint_step(engine, *args, **named)
        if "models.trunk.layers.0.weight" in dict(engine.module.named_parameters()):
            seen.append({n: p.detach().clone() for n, p in engine.module.named_parameters()})
        return said

    with mock.patch.object(trainer.run, "joint_step", step):
        Run(read_request(str(root), request["key"]), str(root), World(0, 1, 0, torch.device("cpu")), time.time()).run()
    found = kinds.trained("rounds-0", "one").params
    for name, start in seen[0].items():
        average = start.double()
        for n, params in enumerate(seen[1:]):
            decay = min(0.5, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * params[name].double()
        torch.testing.assert_close(found[name].double(), average, atol=1e-6, rtol=1e-5)
