"""The shortest convex combination of the task gradients.

Source: Désidéri, Multiple-gradient descent algorithm (MGDA), Comptes Rendus Mathématique 350, 2012; for networks Sener & Koltun,
Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, eq. 3.
Ours, not TorchJD's, whose Frank-Wolfe iteration (their algorithm 2) stops at three digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.balancers.solving import RIDGE, Geometry, begin, nearest, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Mgda(Balancer):
    """Goes down for every task at the same rate, until none can be made better without making another worse (MGDA).

    Weights sum to the number of tasks in the step (in the paper to 1). The task with the shortest gradient leads: losses of very
    different scale are better served by `nash_mtl` or `imtl_g`.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"
    conflict_free: ClassVar[bool] = True

    kind: Literal["mgda"] = "mgda"

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(_steps, gram_TT, present_T, state)


def _steps(tasks: Geometry) -> np.ndarray:
    return tasks.norm_A * len(tasks.norm_A) * nearest(tasks.factor(RIDGE) * tasks.norm_A)
