"""Weights from the homoscedastic uncertainty of each task.

Source: Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018, eq. 7,
in the log-variance form s = log(sigma^2) that the paper recommends for stability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_GRAD = 1e18  # its square is still a float32
_LARGEST_LOG_VAR = 20.0  # a loss of 0 would otherwise ask for an infinite weight


class Uncertainty(Balancer):
    """Minimises `sum_t exp(-s_t) L_t + s_t`; the s are learned by Adam beside the model.

    The gradient of s needs only the loss values, so s lives in the balancer's state instead of among the
    sharded parameters, and every rank makes the same step. A loss that is not finite moves no s.
    """

    kind: Literal["uncertainty"] = "uncertainty"
    lr: float = Field(0.01, gt=0, lt=1, description="Learning rate of the log-variances.")

    def init(self, tasks: Sequence[str]) -> State:
        """Zero log-variances: equal weights at first."""
        import torch

        zeros = torch.zeros(len(tasks))
        return {"log_var_T": zeros, "mean_T": zeros.clone(), "square_T": zeros.clone(), "steps_T": zeros.clone()}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """`exp(-s)` where present, then one Adam step on s of the tasks that are present."""
        import torch

        log_var_T = state["log_var_T"]
        weight_T = torch.exp(-log_var_T)
        learns_T = present_T & loss_T.isfinite()  # one overflow must not spoil the weights for good
        grad_T = (1 - weight_T * loss_T).clamp_min(-_LARGEST_GRAD)
        steps_T = state["steps_T"] + learns_T
        mean_T = torch.where(learns_T, 0.9 * state["mean_T"] + 0.1 * grad_T, state["mean_T"])
        square_T = torch.where(learns_T, 0.999 * state["square_T"] + 0.001 * grad_T.square(), state["square_T"])
        count_T = steps_T.clamp_min(1)
        step_T = (mean_T / (1 - 0.9**count_T)) / ((square_T / (1 - 0.999**count_T)).sqrt() + 1e-8)
        log_var_T = (log_var_T - self.lr * step_T * learns_T).clamp(-_LARGEST_LOG_VAR, _LARGEST_LOG_VAR)
        return weight_T * present_T, {"log_var_T": log_var_T, "mean_T": mean_T, "square_T": square_T, "steps_T": steps_T}
