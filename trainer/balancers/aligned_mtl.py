"""Independent component alignment: the principal components of the task gradients get equal strength.

Source: Senushkin, Patakin, Kuznetsov & Konushin, Independent Component Alignment for Multi-Task Learning, CVPR 2023, algorithm 1.
TorchJD's weighting is called, on a Gramian whose rounding is gone: its rank is told by float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.solving import Geometry, begin, solve
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class AlignedMtl(Balancer):
    """Makes the system of task gradients orthogonal with one singular value, and adds up (Aligned-MTL).

    With preferences of 1, not 1/T: orthogonal gradients of equal norm get weights of 1. By default all components get as strong as
    the weakest, as in the paper, so weights are far below 1 where tasks conflict or differ in scale.
    """

    needs_gram: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    positive: ClassVar[bool] = False

    kind: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "rmse"] = Field("min", description="The singular value that all get (rmse: root mean square).")

    def init(self, tasks: Sequence[str]) -> State:
        return begin()

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        return solve(self._steps, gram_TT, present_T, state)

    def _steps(self, tasks: Geometry) -> np.ndarray:
        import torch
        from torchjd.aggregation import AlignedMTLWeighting

        weight_A = AlignedMTLWeighting(scale_mode=self.scale)(torch.from_numpy(tasks.gram_AA)).numpy()
        return weight_A * len(weight_A) * tasks.norm_A
