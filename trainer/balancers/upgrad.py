"""UPGrad: each task gradient is projected to where it harms no other task, and the projections are added up.

Source: Quinton & Rey, Jacobian Descent for Multi-Objective Optimization, 2024, eq. 3-5 and proposition 1.
Ours, not TorchJD's: its solver (quadprog) needs a ridge of 1e-4, so that a task may still lose a little, and takes small Gramians for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.balancers.solving import RIDGE, Geometry, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class UpGrad(Balancer):
    """The sum of the task gradients, each projected onto the cone of directions that go down for all tasks (UPGrad).

    With preferences of 1 (in the paper 1/T), so that without a conflict every weight is 1: the plain sum.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"
    conflict_free: ClassVar[bool] = True

    kind: Literal["upgrad"] = "upgrad"

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(_steps, gram_TT, present_T, state)


def _steps(tasks: Geometry) -> np.ndarray:
    """The projection of unit gradient u is `u + U'x` for the x >= 0 that makes it shortest: non-negative least squares."""
    from scipy.optimize import nnls

    step_A, unit_DA = tasks.norm_A.copy(), tasks.factor(RIDGE)
    for task, norm in enumerate(tasks.norm_A):
        if tasks.cosine_AA[task].min() < 0:
            step_A += norm * nnls(unit_DA, -unit_DA[:, task])[0]
    return step_A
