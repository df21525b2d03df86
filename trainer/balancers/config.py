"""ConFIG: the update that goes down for every task, by the pseudoinverse of the unit gradients.

Source: Liu, Chu & Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025, eq. 2-3.
Ours, not TorchJD's, which needs the gradients themselves. `pinv(U) 1 = U' pinv(U U') 1` needs only their cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.balancers.solving import Geometry, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class ConFig(Balancer):
    """The direction of IMTL-G, as long as the task gradients are along it, added up: the more they agree, the longer (ConFIG).

    As in the paper; gradients that agree get the length of their plain sum.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"
    conflict_free: ClassVar[bool] = True
    positive: ClassVar[bool] = False

    kind: Literal["config"] = "config"

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(_steps, gram_TT, present_T, state)


def _steps(tasks: Geometry) -> np.ndarray:
    import numpy as np

    step_A = np.linalg.pinv(tasks.cosine_AA, hermitian=True, rcond=1e-12).sum(1)
    square = step_A @ tasks.cosine_AA @ step_A
    return step_A * (tasks.norm_A @ tasks.cosine_AA @ step_A) / square if square > 1e-12 else np.zeros_like(step_A)
