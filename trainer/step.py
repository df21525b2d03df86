"""ONE training step, top to bottom, whatever the kind of joint training.

    micro-batches → forward → (sum, count) → reduce → [gram] → weigh → backward → clip → optimiser

Shape suffixes: T tasks of the phase, P tasks present in this step, A micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trainer.balance import Balance, Gramian, Look, look_at, look_at_update
from trainer.engine import Engine
from trainer.joint import Batches, counted
from trainer.parts import Balancer, State
from trainer.spec import Task
from trainer.world import World


@dataclass(frozen=True)
class StepLog:
    """What a step tells observers; the same on every rank."""

    total_T: Tensor
    """Losses summed over rows, ranks and micro-batches."""
    count_T: Tensor
    """Rows that counted."""
    weight_T: Tensor
    """Weights, averaged over the rows that counted; 0 where none did."""
    asked: Tensor
    """`[2]`: how many ranks ask for a stop, and for a checkpoint."""
    look: Look | None = None
    """What an exact look at the task gradients found, on steps that took one."""


def joint_step(
    engine: Engine,
    world: World,
    tasks: dict[str, Task],
    present: Sequence[int],
    micro_batches: Sequence[Batches],
    balancer: Balancer,
    state: State,
    lr: float,
    asks: tuple[bool, bool],
    gram: Gramian | None = None,
    step: int = 0,
    complete: frozenset[str] = frozenset(),
) -> tuple[StepLog, State]:
    """Train one step and return what happened and the balancer's next state.

    Every task's loss is the sum over all rows of the step divided by their number, over all ranks and
    micro-batches; ranks may hold unequal rows, and rows without a target don't count. Weights are made
    anew for each micro-batch, from its own losses: those of the whole step are known too late.

    Args:
        tasks: the tasks of the phase, in order.
        present: positions in `tasks` of those that this step sees; the same on every rank.
        micro_batches: this rank's rows; at least one row of each dataset in each.
        asks: whether this rank asks for a stop, and for a checkpoint.
        gram: what Gramians are made of, where the balancer weighs gradients or they are looked at.
        step: number of the step in its phase.
        complete: tasks none of whose training rows lacks a target, and whose objective counts rows: nothing is to be counted.
    """
    device = world.device
    names = list(tasks)
    seen = [names[t] for t in present]
    # with all tasks there, as nearly always, a vector of those present is a vector of all
    zeros_T, index = _places(tuple(present), len(names), device)
    asked = _asked(asks, device)
    rows = [_counts(tasks, seen, batches, complete, device) for batches in micro_batches]

    # gradients are weighed in the middle of the backward pass, so what they are divided by is needed before it
    ahead = len(micro_batches) > 1 or gram is not None
    count_P = rows[0]
    if ahead:  # the divisor is that of the whole step, so it is needed before the first backward pass
        count_P, asked = world.sum(torch.stack(rows).sum(0), asked)

    total_P = weight_T = look = None
    for micro, batches in enumerate(micro_batches):
        even_P = world.size / count_P.clamp_min(1)  # of this rank's rows alone where the divisor comes with the losses
        point = None
        if gram is not None:
            point = engine.module.balance = gram.point(world, seen, even_P, step, micro, engine.scale)
            point.repeatable = engine.repeatable
        sums_P = engine.losses(seen, batches)
        if ahead:
            found_P, micro_P = world.sum(sums_P.detach(), rows[micro])
        else:
            found_P, count_P, asked = world.sum(sums_P.detach(), count_P, asked)
            micro_P = count_P
        # a task none of whose rows has a target is absent: the 0 that stands for its loss is not a loss
        counted_T = _spread(zeros_T, index, micro_P)
        loss_T = _spread(zeros_T, index, found_P / micro_P.clamp_min(1))
        before = state
        # engines average gradients over ranks: times the world size, the sum over ranks is left
        if point is not None and (balancer.needs_gram or balancer.needs_grads):
            now_T, state = _weigh_gradients(engine, point, torch.dot(sums_P, even_P), balancer, loss_T, index, counted_T > 0, state)
        else:
            now_T, state = balancer.weigh(loss_T, None, counted_T > 0, state)
            if not ahead:
                even_P = world.size / count_P.clamp_min(1)
            engine.backward(torch.dot(sums_P, (now_T if index is None else now_T[index]) * even_P))
        if point is not None and point.exact and micro == 0:
            look = _look(point, now_T, balancer, loss_T, index, counted_T > 0, before, present)
        engine.step(lr, boundary=micro == len(micro_batches) - 1)
        total_P = found_P if total_P is None else total_P + found_P
        weight_T = now_T * counted_T if weight_T is None else weight_T + now_T * counted_T

    assert total_P is not None
    assert weight_T is not None
    count_T = _spread(zeros_T, index, count_P)
    return StepLog(_spread(zeros_T, index, total_P), count_T, weight_T / count_T.clamp_min(1), asked, look), state


def _weigh_gradients(
    engine: Engine, point: Balance, loss: Tensor, balancer: Balancer, loss_T: Tensor, index: Tensor | None, present_T: Tensor, state: State
) -> tuple[Tensor, State]:
    """The backward pass, in the middle of which the balancer is asked: its weights and next state."""
    weight_T, after = present_T.to(loss_T.dtype), state

    def weigh(gram_PP: Tensor) -> Tensor:
        nonlocal weight_T, after
        weight_T, after = balancer.weigh(loss_T, _spread_square(gram_PP, index, len(loss_T)), present_T, state)
        return weight_T if index is None else weight_T[index]

    def combine(grads_PN: Tensor) -> Tensor:
        nonlocal after
        grads_TN = grads_PN if index is None else grads_PN.new_zeros(len(loss_T), grads_PN.shape[1]).index_copy(0, index, grads_PN)
        update_N, after = balancer.combine(grads_TN, present_T, state)
        return update_N

    point.weigh = weigh if balancer.needs_gram else None
    point.combine = combine if balancer.needs_grads else None
    engine.backward(loss)
    return weight_T, after


def _look(
    point: Balance,
    weight_T: Tensor,
    balancer: Balancer,
    loss_T: Tensor,
    index: Tensor | None,
    present_T: Tensor,
    state: State,
    present: Sequence[int],
) -> Look:
    """What the exact Gramian says of the weights of a step."""
    assert point.exact_PP is not None
    if point.gained_P is not None and point.moved is not None:
        return look_at_update(point.exact_PP, point.gained_P, point.moved, present)
    wanted_T = weight_T
    if balancer.needs_gram:
        wanted_T, _ = balancer.weigh(loss_T, _spread_square(point.exact_PP, index, len(loss_T)), present_T, state)
    made_P, wanted_P = (w if index is None else w[index] for w in (weight_T, wanted_T))
    return look_at(point.exact_PP, made_P, wanted_P, present)


def _spread_square(gram_PP: Tensor, index: Tensor | None, tasks: int) -> Tensor:
    if index is None:
        return gram_PP
    gram_TT = gram_PP.new_zeros(tasks, tasks)
    gram_TT[index[:, None], index] = gram_PP
    return gram_TT


@lru_cache(maxsize=1024)
def _places(present: tuple[int, ...], tasks: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Zeros for all tasks, and where among them those present are; None where that is all."""
    zeros_T = torch.zeros(tasks, device=device)
    return zeros_T, None if present == tuple(range(tasks)) else torch.tensor(present, device=device)


@lru_cache(maxsize=16)
def _asked(asks: tuple[bool, bool], device: torch.device) -> Tensor:
    return torch.tensor([float(a) for a in asks], device=device)


def _spread(zeros_T: Tensor, index: Tensor | None, x_P: Tensor) -> Tensor:
    """Values of the tasks present, at their places among all."""
    return x_P if index is None else zeros_T.index_copy(0, index, x_P)


def _counts(tasks: dict[str, Task], seen: Sequence[str], batches: Batches, complete: frozenset[str], device: torch.device) -> Tensor:
    """Rows of a micro-batch that count, `[P]` float32."""
    if complete.issuperset(seen):
        return _all_rows(tuple(len(batches[tasks[name].data][1][tasks[name].target]) for name in seen), device)  # type: ignore[index]
    return torch.stack([counted(tasks[name], batches[tasks[name].data]) for name in seen])


@lru_cache(maxsize=1024)
def _all_rows(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)
