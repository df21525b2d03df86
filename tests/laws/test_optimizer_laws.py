"""What every optimiser promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.catalog import CATALOG, find
from trainer.engine import open_engine
from trainer.joint import Joint
from trainer.spec import Train

OPTIMIZERS = sorted(CATALOG["optimizer"])
VARIANTS = [(kind, {}) for kind in OPTIMIZERS] + [("sgd", {"nesterov": True, "momentum": 0.5, "weight_decay": 0.1})]


class Bowl(Joint):
    """Parameters whose gradient is a function of themselves."""

    def __init__(self) -> None:
        super().__init__({}, {}, {"a": nn.Linear(3, 2), "b": nn.Linear(2, 1)})

    def loss(self, step: int) -> torch.Tensor:
        both = torch.cat([p.flatten() for p in self.parameters()])
        return ((both - torch.linspace(-1, 1, len(both)) * (1 + step % 3)) ** 4).sum()


def bowl() -> Bowl:
    torch.manual_seed(0)
    return Bowl()


def engine_of(module: Bowl, kind: str, options: dict[str, Any]) -> Any:
    return open_engine(module, find("optimizer", kind)(lr=0.01, **options), Train(clip=None), 1, torch.device("cpu"))


def go(engine: Any, module: Bowl, start: int, stop: int) -> None:
    for step in range(start, stop):
        engine.backward(module.loss(step))
        engine.step(0.001 * (1 + step), boundary=True)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_what_is_exported_is_all_there_is_to_go_on_bit_for_bit(kind: str, options: dict[str, Any]) -> None:
    whole = bowl()
    go(engine_of(whole, kind, options), whole, 0, 12)
    first = bowl()
    engine = engine_of(first, kind, options)
    go(engine, first, 0, 7)
    params, state, values = engine.export()
    second = bowl()
    second.load_state_dict(params)
    engine = engine_of(second, kind, options)
    engine.restore(state, values)
    go(engine, second, 7, 12)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_every_state_tensor_of_torch_is_named(kind: str, options: dict[str, Any]) -> None:
    part = find("optimizer", kind)(**options)
    p = nn.Parameter(torch.ones(3))
    optimizer = part.build([p])
    (p**2).sum().backward()
    optimizer.step()
    tensors = {name for name, value in optimizer.state[p].items() if isinstance(value, torch.Tensor) and value.ndim}
    assert tensors == set(part.state_names)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_an_export_is_not_changed_by_steps_that_come_after(kind: str, options: dict[str, Any]) -> None:
    module = bowl()
    engine = engine_of(module, kind, options)
    go(engine, module, 0, 2)
    params, state, _ = engine.export()
    kept = {name: value.clone() for name, value in (params | state).items()}
    go(engine, module, 2, 4)
    assert all(torch.equal(kept[name], value) for name, value in (params | state).items())


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_it_goes_downhill(kind: str, options: dict[str, Any]) -> None:
    module = bowl()
    before = module.loss(0).item()
    engine = engine_of(module, kind, options)
    for _ in range(60):
        engine.backward(module.loss(0))
        engine.step(0.01, boundary=True)
    assert module.loss(0).item() < 0.5 * before


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = find("optimizer", "adamw")(lr=0.1, weight_decay=0.5).build([p])
    p.grad = torch.zeros(1)
    optimizer.step()
    assert p.item() == pytest.approx(0.95)
