"""ONE training step, top to bottom, whatever the kind of joint training.

    micro-batches → forward → (sum, count) → reduce → weigh → backward → clip → optimiser

Shape suffixes: T tasks of the phase, P tasks present in this step, A micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.balance import Balance, Gramian
from trainer.engine import Engine
from trainer.joint import Batches
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
    """Weights, averaged over micro-batches."""
    asked: Tensor
    """`[2]`: how many ranks ask for a stop, and for a checkpoint."""


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
) -> tuple[StepLog, State]:
    """Train one step and return what happened and the balancer's next state.

    Every task's loss is the sum over all rows of the step divided by their number, over all ranks and
    micro-batches; ranks may hold unequal rows, and rows without a target don't count.

    Args:
        tasks: the tasks of the phase, in order.
        present: positions in `tasks` of those that this step sees; the same on every rank.
        micro_batches: this rank's rows; at least one row of each dataset in each.
        asks: whether this rank asks for a stop, and for a checkpoint.
    """
    device = world.device
    names = list(tasks)
    seen = [names[t] for t in present]
    index = torch.tensor(present, device=device)
    present_T = torch.zeros(len(names), dtype=torch.bool, device=device)
    present_T[index] = True
    asked = torch.tensor([float(a) for a in asks], device=device)
    rows = [_counts(tasks, seen, batches) for batches in micro_batches]

    several = len(micro_batches) > 1
    # gradients are weighed while they are made, so what they are divided by is needed before
    ahead = several or gram is not None
    count_P = torch.stack(rows).sum(0)
    if ahead:  # the divisor is that of the whole step, so it is needed before the first backward pass
        count_P, asked = world.sum(count_P, asked)

    zeros_T = torch.zeros(len(names), device=device)
    total_P, weight_T = torch.zeros_like(count_P), zeros_T
    for micro, batches in enumerate(micro_batches):
        even_P = world.size / count_P.clamp_min(1)
        point = gram.point(world, seen, even_P, step if micro == 0 else -1, engine.scale) if gram else None
        engine.module.balance = point
        sums_P = engine.losses(seen, batches)
        if ahead:
            found_P, micro_P = world.sum(sums_P.detach(), rows[micro])
        else:
            found_P, count_P, asked = world.sum(sums_P.detach(), count_P, asked)
            micro_P = count_P
        total_P = total_P + found_P
        loss_T = zeros_T.index_copy(0, index, found_P / micro_P.clamp_min(1))
        if point is not None and balancer.needs_gram:
            now_T, state = _weigh_gradients(engine, point, (sums_P * even_P).sum(), balancer, loss_T, index, present_T, state)
        else:
            now_T, state = balancer.weigh(loss_T, None, present_T, state)
            engine.backward((sums_P * now_T[index] * world.size / count_P.clamp_min(1)).sum())
        weight_T = weight_T + now_T / len(micro_batches)
        engine.step(lr, boundary=micro == len(micro_batches) - 1)

    return StepLog(zeros_T.index_copy(0, index, total_P), zeros_T.index_copy(0, index, count_P), weight_T, asked), state


def _weigh_gradients(
    engine: Engine, point: Balance, loss: Tensor, balancer: Balancer, loss_T: Tensor, index: Tensor, present_T: Tensor, state: State
) -> tuple[Tensor, State]:
    """The backward pass, in the middle of which the balancer is asked: its weights and next state."""
    told: list[tuple[Tensor, State]] = []

    def weigh(gram_PP: Tensor) -> Tensor:
        gram_TT = gram_PP.new_zeros(len(loss_T), len(loss_T))
        gram_TT[index[:, None], index] = gram_PP
        told.append(balancer.weigh(loss_T, gram_TT, present_T, state))
        return told[-1][0][index]

    point.weigh = weigh
    engine.backward(loss)
    return told[-1]


def _counts(tasks: dict[str, Task], seen: Sequence[str], batches: Batches) -> Tensor:
    """Rows of a micro-batch that count, `[P]` float32."""
    return torch.stack([tasks[name].objective.count(batches[tasks[name].data][1][tasks[name].target]) for name in seen])  # type: ignore[union-attr]
