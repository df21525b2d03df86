"""What balancers that read losses promise. What all balancers promise on any Gramian is in test_gram_balancer_laws.py."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.catalog import CATALOG, find
from trainer.checkpoint import Checkpoints, Saved
from trainer.parts import Balancer, State
from trainer.stores import open_store

BALANCERS = sorted(kind for kind in CATALOG["balancer"] if not find("balancer", kind).needs_gram)
APART = ["equal", "static", "uncertainty"]
"""Those that weigh each task by itself, whatever the others do."""
TASKS = ["a", "b", "c", "d"]
OPTIONS = {"static": {"weights": {"a": 0.0, "b": 1.0, "c": 2.5, "d": 0.25}}}


def make(kind: str) -> Balancer:
    return find("balancer", kind)(**OPTIONS.get(kind, {}))


def losses(steps: int = 40) -> Tensor:
    """`[steps, T]`: losses of different sizes that go down."""
    generator = torch.Generator().manual_seed(0)
    size_T = torch.tensor([0.1, 1.0, 10.0, 1000.0])
    return size_T * (0.5 + torch.rand(steps, 4, generator=generator)) * torch.linspace(2, 1, steps)[:, None]


def presence(steps: int = 40) -> Tensor:
    return torch.rand(steps, 4, generator=torch.Generator().manual_seed(1)) < 0.7


def run(balancer: Balancer, tasks: list[str], loss_ST: Tensor, present_ST: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Weights `[steps, T]` and the last state."""
    state = balancer.init(tasks) if state is None else state
    weights = []
    for loss_T, present_T in zip(loss_ST, present_ST, strict=True):
        weight_T, state = balancer.weigh(loss_T * present_T, None, present_T, state)
        weights.append(weight_T)
    return torch.stack(weights), state


@pytest.mark.parametrize("kind", APART)
def test_order_of_tasks_does_not_matter(kind: str) -> None:
    there, _ = run(make(kind), TASKS, losses(), presence())
    back, _ = run(make(kind), TASKS[::-1], losses().flip(1), presence().flip(1))
    torch.testing.assert_close(back, there.flip(1))


@pytest.mark.parametrize("kind", APART)
def test_an_absent_task_weighs_nothing_and_teaches_nothing(kind: str) -> None:
    present = presence()
    weights, _ = run(make(kind), TASKS, losses(), present)
    assert weights.dtype == torch.float32
    assert (weights[~present] == 0).all()
    other = losses()
    only = present.clone()
    only[:, 1:] = False  # the others never come: a's weights are the same as when they do
    alone, _ = run(make(kind), TASKS, other, only)
    torch.testing.assert_close(alone[:, 0], weights[:, 0])


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, 3e38, float("inf"), float("nan")])
def test_weights_stay_finite_whatever_the_losses(kind: str, value: float) -> None:
    balancer = make(kind)
    fast = balancer.model_copy(update={"lr": 0.5} if "lr" in type(balancer).model_fields else {})  # gets as far in fewer steps
    loss_ST, present_ST = losses(400), torch.ones(400, 4, dtype=torch.bool)
    loss_ST[5:350, 1] = value
    loss_ST[0, 2] = value
    weights, state = run(fast, TASKS, loss_ST, present_ST)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert all(value.isfinite().all() for value in state.values() if isinstance(value, Tensor))


@pytest.mark.parametrize("kind", BALANCERS)
def test_the_same_numbers_give_the_same_weights_and_the_state_that_goes_in_is_left_alone(kind: str) -> None:
    balancer = make(kind)
    _, state = run(balancer, TASKS, losses(), presence())
    kept = deepcopy(state)
    first, _ = balancer.weigh(losses()[0], None, presence()[0], state)
    second, _ = balancer.weigh(losses()[0], None, presence()[0], state)
    assert torch.equal(first, second)
    torch.testing.assert_close(state, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", BALANCERS)
def test_its_state_goes_through_a_checkpoint(kind: str, tmp_path: Path) -> None:
    whole, _ = run(make(kind), TASKS, losses(), presence())
    _, half = run(make(kind), TASKS, losses()[:17], presence()[:17])
    checkpoints = Checkpoints(open_store(str(tmp_path)), "checkpoints/x", 1)
    checkpoints.save(Saved(balancer=half))
    again = checkpoints.read(checkpoints.latest() or "").balancer
    rest, _ = run(make(kind), TASKS, losses()[17:], presence()[17:], again)
    assert torch.equal(rest, whole[17:])


def test_uncertainty_finds_the_weight_that_is_optimal_for_a_constant_loss() -> None:
    """`exp(-s) L + s` is least at `exp(-s) = 1 / L` (Kendall et al., eq. 7)."""
    loss_ST = torch.tensor([0.5, 1.0, 2.0, 4.0]).expand(1500, 4)
    weights, _ = run(make("uncertainty"), TASKS, loss_ST, torch.ones(1500, 4, dtype=torch.bool))
    torch.testing.assert_close(weights[-1], 1 / loss_ST[0], rtol=0.02, atol=0)
    assert torch.equal(weights[0], torch.ones(4))


def test_uncertainty_recovers_from_one_huge_loss() -> None:
    loss_ST, present_ST = torch.full((1500, 4), 2.0), torch.ones(1500, 4, dtype=torch.bool)
    loss_ST[3, 0], loss_ST[3, 1] = float("inf"), float("nan")
    weights, _ = run(make("uncertainty"), TASKS, loss_ST, present_ST)
    torch.testing.assert_close(weights[-1], torch.full((4,), 0.5), rtol=0.02, atol=0)


def test_static_weights_are_those_of_the_document() -> None:
    weights, _ = run(make("static"), ["d", "a"], losses()[:1, :2], torch.tensor([[True, True]]))
    assert weights.tolist() == [[0.25, 0.0]]
