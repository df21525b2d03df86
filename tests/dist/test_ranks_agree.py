"""However many ranks there are and whatever they shard, the same is trained: held against plain float64 torch on one process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear
from training_cases import OFFLOADS, STAGES, Garden, Ranks
from training_inputs import assert_close

from trainer.joint import build
from trainer.order import Order
from trainer.results import fetch
from trainer.shards import Split

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]  # the process groups start in whichever test comes first


def reference(garden: Garden, label: str, present: Any = None) -> dict[str, Tensor]:
    """The parameters after a document's only phase, in float64, by nothing of cotrain but the initial weights, the rows and their order."""
    spec, request = garden.specs[label], garden.requests[label]
    phase = spec.phases["joint"]
    fitted, x, y = {}, {}, {}
    for name, dataset in spec.data.items():
        result = fetch(str(garden.root / "asked"), "data", request["data"][name]["key"])
        fitted[name] = result.json("fitted.json")
        split = Split(result.folder, result.json("manifest.json"), "train")
        every = np.arange(len(split))
        x[name] = dataset.columns["x"].tensor(split.gather("x", every), fitted[name]["x"]).double()
        for column in fitted[name].keys() - {"x", "note"}:
            y[column] = dataset.columns[column].tensor(split.gather(column, every), fitted[name][column])
    params = {name: p.detach().double().requires_grad_() for name, p in build(spec, fitted, seed=0).named_parameters()}
    said = spec.train.optimizer
    if said.kind == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params.values(), lr=said.lr, weight_decay=said.weight_decay)
    else:
        optimizer = torch.optim.SGD(params.values(), lr=said.lr, momentum=0.9)
    log_var = {task: torch.zeros((), dtype=torch.float64, requires_grad=True) for task in spec.tasks}
    balance = torch.optim.Adam(log_var.values(), lr=0.01)
    order = {name: Order(len(x[name]), 0, name) for name in spec.data}
    drawn = dict.fromkeys(spec.data, 0)
    weights = getattr(phase.balancer, "weights", {})

    def layer(h: Tensor, name: str) -> Tensor:
        return linear(h, params[f"{name}.weight"], params[f"{name}.bias"])

    for step in range(phase.steps):
        tasks = list(spec.tasks) if present is None else present(step)
        rows = {}
        for name in dict.fromkeys(spec.tasks[task].data for task in tasks):
            rows[name] = order[name].take(25 * drawn[name], 25)
            drawn[name] += 1
        optimizer.zero_grad()
        balance.zero_grad()
        total: Any = 0.0
        for task in tasks:
            data = spec.tasks[task].data
            z = gelu(layer(gelu(layer(x[data][rows[data]], "models.trunk.layers.0")), "models.trunk.layers.2"))
            target = y[task][rows[data]]
            there = ~target.isnan() if task == "height" else target >= 0
            if not there.any():
                continue
            if task == "height":
                loss = (layer(gelu(layer(z, "heads.height.0")), "heads.height.2")[there, 0] - target[there].double()).square().mean()
            else:
                loss = cross_entropy(layer(z, f"heads.{task}")[there], target[there].long())
            weight = log_var[task].neg().exp()
            if phase.balancer.kind == "uncertainty":
                (weight * loss.detach() + log_var[task]).backward()
                total = total + weight.detach() * loss
            else:
                total = total + weights.get(task, 1.0) * loss
        total.backward()
        for p in params.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if spec.train.clip is not None:
            norm = torch.stack([p.grad.square().sum() for p in params.values()]).sum().sqrt()
            for p in params.values():
                p.grad *= min(1.0, spec.train.clip / float(norm))
        warmup = int(0.05 * phase.steps)
        for group in optimizer.param_groups:
            group["lr"] = said.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (phase.steps - warmup)))
        optimizer.step()
        balance.step()
    return {name: p.detach() for name, p in params.items()}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_sums_over_unequal_ranks_and_missing_targets_are_divided_by_the_global_count(
    garden: Garden, one: Garden, two: Ranks, three: Ranks, stage: int, accumulate: int
) -> None:
    label = f"sums-{stage}-{accumulate}"
    expected = reference(garden, label)
    for where in ("two", "three"):
        assert_close(garden.trained(label, where).params, expected)
    assert_close(garden.trained(f"sums-0-{accumulate}", "one").params, expected)


def test_some_rank_has_micro_batches_without_any_target(garden: Garden, two: Ranks) -> None:
    """What the test above relies on."""
    request = garden.requests["sums-0-4"]
    result = fetch(str(garden.root / "asked"), "data", request["data"]["plants"]["key"])
    plants = Split(result.folder, result.json("manifest.json"), "train")
    every, fitted = np.arange(len(plants)), result.json("fitted.json")["x"]
    x = garden.specs["sums-0-4"].data["plants"].columns["x"].tensor(plants.gather("x", every), fitted)[:, 0].tolist()
    known = dict(zip(x, (~np.isnan(plants.gather("height", every))).tolist(), strict=True))
    trained = [rows["plants"] for _, _, rows in two.said["sums-0-4 in two"][0][0]["rows"]]
    assert {len(rows) for rows in trained} == {12}  # 25 rows over 2 ranks; the other has 13
    counts = [sum(known[row] for row in rows[3 * micro : 3 * micro + 3]) for rows in trained for micro in range(4)]
    assert 0 in counts
    assert max(counts) > 0


def _turn(step: int) -> list[str]:
    return [["plant", "height", "hard"][step % 3]]


@pytest.mark.parametrize("label", [f"absent-{stage}" for stage in STAGES] + [f"absent-{stage}-offload" for stage in OFFLOADS])
def test_the_head_of_an_absent_task_sees_a_zero_gradient(garden: Garden, one: Garden, two: Ranks, three: Ranks, label: str) -> None:
    expected = reference(garden, label, _turn)
    assert_close(garden.trained(label, "two").params, expected)
    assert_close(garden.trained("absent-0", "one").params, expected)
    if (garden.root / "three" / "results" / "train" / garden.requests[label]["key"]).exists():
        assert_close(garden.trained(label, "three").params, expected)


@pytest.mark.parametrize("label", ["absent-3", "absent-1-offload"])
def test_deepspeed_would_use_the_gradient_of_an_absent_task_again(garden: Garden, two: Ranks, label: str) -> None:
    """If this fails DeepSpeed has changed: see what `_forget_gradients` is still good for."""
    expected = reference(garden, label, _turn)
    with pytest.raises(AssertionError, match=r"not close"):
        assert_close(garden.trained(label, "two-without").params, expected)


@pytest.mark.parametrize("family", ["sums-{}-1", "sums-{}-4", "absent-{}"])
def test_zero_stages_report_the_same_losses(garden: Garden, two: Ranks, family: str) -> None:
    for split in ("train", "valid"):
        zero, *others = [garden.trained(family.format(stage), "two").losses(split) for stage in STAGES]
        assert zero
        for other in others:
            for expected, found in zip(zero, other, strict=True):
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_validation_sees_every_row_once_on_any_number_of_ranks(garden: Garden, one: Garden, two: Ranks, three: Ranks) -> None:
    records = [[r for r in garden.trained("sums-0-1", where).history if r["split"] == "valid"] for where in ("one", "two", "three")]
    assert [r["step"] for r in records[0]] == [4, 8, 10]
    for expected, *found in zip(*records, strict=True):
        for record in found:
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert record["metric"] == pytest.approx(expected["metric"], rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clip", [0.05, None])
def test_the_norm_of_the_whole_gradient_is_clipped_at_what_the_document_says(
    garden: Garden, one: Garden, two: Ranks, stage: int, clip: float | None
) -> None:
    label = f"clip-{clip}-{stage}"
    expected = reference(garden, label)
    assert_close(garden.trained(label, "two").params, expected, atol=3e-5)
    assert_close(garden.trained(f"clip-{clip}-0", "one").params, expected, atol=3e-5)


@pytest.mark.parametrize("label", [f"frozen-fp32-{s}" for s in STAGES] + [f"frozen-bf16-{s}" for s in OFFLOADS])
def test_what_is_frozen_does_not_move(garden: Garden, two: Ranks, label: str) -> None:
    spec = garden.specs[label]
    found = garden.trained(label, "two")
    initial = dict(build(spec, found.result["fitted"], seed=0).named_parameters())
    moved = {name for name, value in found.params.items() if not torch.equal(value, initial[name])}
    assert {name for name in moved if name.startswith("models.")} == {name for name in initial if name.startswith("models.other")}
    assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == {"plant", "height", "hard"}


def test_a_transformer_may_be_sharded(garden: Garden, one: Garden, two: Ranks) -> None:
    expected = garden.trained("text-0", "one")
    for label in ("text-0", "text-3"):
        found = garden.trained(label, "two")
        assert_close(found.params, expected.params, atol=1e-4)
        for a, b in zip(found.losses("valid"), expected.losses("valid"), strict=True):
            assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_detector_and_a_classifier_meet_at_their_map(garden: Garden, one: Garden, two: Ranks, stage: int) -> None:
    """Gradients balanced at a map, a head of convolutions: two ranks give what one does."""
    expected, found = garden.trained("boxes-0", "one"), garden.trained(f"boxes-{stage}", "two")
    assert_close(found.params, expected.params, atol=1e-4)
    for a, b in zip(found.losses("valid"), expected.losses("valid"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_no_compiler_is_needed(garden: Garden, two: Ranks) -> None:
    """`two` ran with compilers that fail, at every stage."""
    assert two.said
    called = garden.root / "tools" / "called"
    assert not called.exists(), called.read_text()
    assert list((garden.root / "extensions").iterdir()) == []
