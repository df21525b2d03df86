"""The geometric mean of the losses.

Source: Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy, CVPR Workshops 2019, eq. 2 (GLS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class GeometricMean(Balancer):
    """Minimises the product of the losses: every task counts by its relative progress (GLS).

    A weight is the geometric mean over the task's own loss: the derivative of the geometric mean times the number of tasks of
    the step, so weights multiply to 1. Losses count as no less than 1e-6 of their mean, also those at or below 0.
    """

    kind: Literal["geometric_mean"] = "geometric_mean"

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        counts_T = present_T & loss_T.isfinite()
        losses_T = loss_T.double().masked_fill(~counts_T, 0).clamp_min(0)
        tasks = counts_T.sum().clamp_min(1)
        floor = (1e-6 * losses_T.sum() / tasks).clamp_min(1e-300)
        log_T = losses_T.clamp_min(floor).log()
        mean = (log_T * counts_T).sum() / tasks
        return torch.where(counts_T, (mean - log_T).exp(), 1.0).float() * present_T, state
