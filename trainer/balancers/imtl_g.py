"""Impartial learning: the update has equal projections on all unit task gradients.

Source: Liu et al., Towards Impartial Multi-Task Learning, ICLR 2021, eq. 4 (IMTL-G), generalised to dependent gradients by TorchJD, whose
weighting is called on the cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.balancers.solving import Geometry, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class ImtlG(Balancer):
    """Every task gains the same, measured along its own gradient (IMTL-G); any task's scale leaves the direction alone.

    Weights sum to the number of tasks in the step (in the paper to 1), unless that would make the update longer than the longest gradient
    times that number. The paper's sum may also be negative, and its update then climbs for every task: ours never does.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    conflict_free: ClassVar[bool] = True
    positive: ClassVar[bool] = False

    kind: Literal["imtl_g"] = "imtl_g"

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(_steps, gram_TT, present_T, state)


def _steps(tasks: Geometry) -> np.ndarray:
    import numpy as np
    import torch
    from torchjd.aggregation import IMTLGWeighting

    step_A = IMTLGWeighting()(torch.from_numpy(tasks.cosine_AA)).numpy()
    length = np.sqrt(max(step_A @ tasks.cosine_AA @ step_A, 0.0))
    total = max(float((step_A / tasks.norm_A).sum()), length / tasks.norm_A.max())
    return step_A * len(step_A) / total if total > 0 else step_A
