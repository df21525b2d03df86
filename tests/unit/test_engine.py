"""The engine of one process; that the sharded one does the same is in tests/dist/test_ranks_agree.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training_inputs import document

from trainer.catalog import find
from trainer.engine import open_engine
from trainer.joint import build
from trainer.spec import Train

X = {"kind": "vector", "shape": [6], "dtype": "float32"}
FITTED: Any = {
    "plants": {"x": X, "plant": {"kind": "category", "shape": [], "classes": ["a", "b", "c"]}, "height": {"kind": "number", "shape": []}},
    "stones": {"x": X, "hard": {"kind": "category", "shape": [], "classes": [False, True]}},
}
CPU = torch.device("cpu")


def opened(train: Train | None = None, dropout: float = 0.0, frozen: str | None = None, **optimizer: Any) -> Any:
    module = build(document(models={"trunk": {"kind": "mlp", "hidden": [16, 7], "dropout": dropout}}), FITTED, seed=0)
    if frozen:
        module.get_submodule(frozen).requires_grad_(False)
    part = find("optimizer", optimizer.pop("kind", "sgd"))(**optimizer)
    return open_engine(module, part, train or Train(clip=None), 1, CPU)


def batches(rows: int = 6) -> Any:
    generator = torch.Generator().manual_seed(0)
    targets = {"plant": torch.randint(3, (rows,), generator=generator), "height": torch.randn(rows, generator=generator)}
    return {"plants": ({"x": torch.randn(rows, 6, generator=generator)}, targets)}


def copy(engine: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def train_once(engine: Any, tasks: tuple[str, ...] = ("plant", "height"), lr: float = 0.1) -> None:
    engine.backward(engine.losses(tasks, batches()).sum())
    engine.step(lr, boundary=True)


def test_one_float32_process_does_not_need_deepspeed() -> None:
    assert type(opened()).__name__ == "_TorchEngine"


def test_gradients_add_up_until_the_boundary() -> None:
    once, twice = opened(lr=0.1), opened(lr=0.1)
    train_once(once)
    before = copy(twice)
    for half, boundary in ((0.25, False), (0.75, True)):
        assert all(torch.equal(before[name], value) for name, value in copy(twice).items())
        twice.backward(half * twice.losses(["plant", "height"], batches()).sum())
        twice.step(0.1, boundary=boundary)
    for name, value in copy(once).items():
        torch.testing.assert_close(copy(twice)[name], value)


def test_the_learning_rate_is_that_of_the_step() -> None:
    engine = opened(lr=123.0)
    before = copy(engine)
    train_once(engine, lr=0.0)
    assert all(torch.equal(before[name], value) for name, value in copy(engine).items())


@pytest.mark.parametrize("clip", [0.01, 1e6, None])
def test_the_norm_of_the_gradient_is_clipped(clip: float | None) -> None:
    engine = opened(Train(clip=clip), lr=1.0)
    before = copy(engine)
    train_once(engine, lr=1.0)
    moved = torch.cat([(value - before[name]).flatten() for name, value in copy(engine).items()]).norm()
    assert (float(moved) == pytest.approx(0.01, rel=1e-3)) == (clip == 0.01)


def test_an_absent_head_sees_a_zero_gradient() -> None:
    """Momentum and weight decay go on, as they do where gradients are sharded."""
    engine = opened(lr=0.1, weight_decay=0.5)
    before = copy(engine)
    train_once(engine, ("plant",))
    torch.testing.assert_close(copy(engine)["heads.height.0.weight"], before["heads.height.0.weight"] * 0.95)


def test_what_is_frozen_does_not_move_though_weights_decay() -> None:
    engine = opened(kind="adamw", lr=0.1, weight_decay=0.5, frozen="models.trunk")
    before = copy(engine)
    train_once(engine)
    moved = {name for name, value in copy(engine).items() if not torch.equal(before[name], value)}
    assert moved == {name for name in before if name.startswith("heads.")}
    params, state, _ = engine.export()
    assert params.keys() == before.keys()
    assert {name.split("/")[1] for name in state} == moved


def test_evaluation_drops_nothing_keeps_no_graph_and_training_goes_on() -> None:
    engine = opened(dropout=0.5)
    first, outputs = engine.call(["plant"], batches())
    second, _ = engine.call(["plant"], batches())
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not outputs["plant"].requires_grad
    assert engine.module.training
    assert not torch.equal(engine.losses(["plant"], batches()), engine.losses(["plant"], batches()))


def test_an_export_without_the_optimiser_is_the_parameters() -> None:
    engine = opened(kind="adamw")
    train_once(engine)
    params, state, values = engine.export(optimizer=False)
    assert (state, values) == ({}, {})
    assert all(torch.equal(params[name], value) for name, value in copy(engine).items())


def test_a_fresh_engine_exports_and_takes_over_an_empty_state() -> None:
    engine = opened(kind="adamw")
    _, state, values = engine.export()
    assert state == {}
    engine.restore(state, values)
    train_once(engine)
