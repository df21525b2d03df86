"""Alpha-fair shares of the update.

Source: Ban & Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, eq. 4: `G w = w ** (-1 / alpha)`.
Ours, not TorchJD's, whose general least-squares solver needs more time and is not scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.solving import Geometry, bargain, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

RIDGE = 1e-6
"""Added to cosines, for gradients that cancel out."""


class FairGrad(Balancer):
    """Between the sum of the gains of all tasks (alpha to 0), Nash bargaining (1) and the gain of the worst (infinity).

    The Gramian is divided by its mean diagonal first, so that a change of all scales changes nothing; orthogonal gradients of equal
    norm get weights of 1.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    conflict_free: ClassVar[bool] = True

    kind: Literal["fairgrad"] = "fairgrad"
    alpha: float = Field(2.0, ge=0.1, le=100, description="1 is proportional fairness; higher favours the task that gains least.")

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(self._steps, gram_TT, present_T, state)

    def _steps(self, tasks: Geometry) -> np.ndarray:
        """With steps x = w n along unit gradients, the equation is `C x = n ** (1 / alpha - 1) / x ** (1 / alpha)`."""
        import numpy as np

        power = 1 / self.alpha
        return bargain(tasks.cosine_AA + RIDGE * np.eye(len(tasks.norm_A)), tasks.norm_A ** (power - 1), power)
