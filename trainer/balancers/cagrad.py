"""Conflict-averse gradient descent: near the mean gradient, the update that is best for the task it serves least.

Source: Liu, Liu, Jin, Stone & Liu, Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021, algorithm 1 and eq. 4.
Ours, not TorchJD's, which asks a general cone solver (cvxpy) and takes small Gramians for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.solving import RIDGE, Geometry, begin, nearest, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class CaGrad(Balancer):
    """`d = g0 + k g_w`, where g0 is the mean gradient, and the convex combination g_w minimises `g_w.g0 + c |g0| |g_w|` (CAGrad).

    Times the number of tasks in the step, so that `c: 0` is the plain sum. One task alone weighs 1.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"

    kind: Literal["cagrad"] = "cagrad"
    c: float = Field(0.5, ge=0, lt=1, description="How far from the mean gradient the update may be, in multiples of its norm.")

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(self._steps, gram_TT, present_T, state)

    def _steps(self, tasks: Geometry) -> np.ndarray:
        """For a fixed k, g_w is the point nearest to -g0 / k in the hull of the task gradients; and k |g_w| grows with k,
        so the k at which it is c |g0| is found by bisection with a solver for the nearest point inside.
        """
        import numpy as np
        from scipy.optimize import brentq

        count = len(tasks.norm_A)
        grads_DA = tasks.factor(RIDGE) * tasks.norm_A
        mean_D = grads_DA.mean(1)
        radius = self.c * np.linalg.norm(mean_D)
        if radius <= 1e-9 * tasks.norm_A.max():  # a ball without room holds the mean gradient alone
            return tasks.norm_A

        def convex(log_k: float) -> np.ndarray:
            return nearest(grads_DA + mean_D[:, None] / np.exp(log_k))

        def excess(log_k: float) -> float:
            return float(log_k + np.log(np.linalg.norm(grads_DA @ convex(log_k)) / radius))

        low = np.log(radius / tasks.norm_A.max())
        # where gradients cancel out there is no such k: then a large one, whose update is within the ball
        high = np.log(radius / max(np.linalg.norm(grads_DA @ nearest(grads_DA)), 1e-5 * tasks.norm_A.min()))
        if excess(high) <= 0:
            log_k = high
        else:
            log_k = brentq(excess, low, high, xtol=1e-9) if excess(low) < 0 else low
        return tasks.norm_A * (1 + count * np.exp(log_k) * convex(log_k))
