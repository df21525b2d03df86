"""Weights learned so that the weighted task gradients get like norms, longer where a task learns slowly.

Source: Chen, Badrinarayanan, Lee & Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks,
ICML 2018, eq. 1-2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.solving import begin
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class GradNorm(Balancer):
    """Descends, by Adam, on `sum_t |w_t n_t - mean(w n) r_t^alpha|`, with n the gradient norms and r the relative loss left.

    Reads only the diagonal of the Gramian, on the device. Weights are kept above 0, and those of all tasks of the phase sum to their
    number, as in the paper; a step uses and moves those of its own tasks, whose sum stays.
    """

    needs_gram: ClassVar[bool] = True
    default_gram: ClassVar[Literal["representation", "last_layer"]] = "last_layer"

    kind: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(1.5, ge=0, description="How strongly tasks that lag behind are favoured.")
    lr: float = Field(0.025, gt=0, lt=1, description="Learning rate of the weights.")

    def init(self, tasks: Sequence[str]) -> State:
        """Equal weights; a first loss that is not known yet is NaN."""
        import torch

        zeros = torch.zeros(len(tasks), dtype=torch.float64)
        return {
            **begin(),
            "weight_T": torch.ones_like(zeros),
            "mean_T": zeros,
            "square_T": zeros.clone(),
            "steps_T": zeros.clone(),
            "first_T": torch.full_like(zeros, torch.nan),
        }

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """This step's weights, then one Adam step on them."""
        import torch

        if gram_TT is None:
            raise ValueError("this balancer needs the Gramian")
        square = gram_TT.detach().diagonal().double()
        counts_T = present_T & loss_T.isfinite() & square.isfinite()
        tasks = counts_T.sum().clamp_min(1)
        norm_T = square.clamp_min(0).sqrt().masked_fill(~counts_T, 0)
        norm_T = norm_T / (norm_T.sum() / tasks).clamp_min(1e-300)  # Adam cancels the scale but for its epsilon
        losses_T = loss_T.double().masked_fill(~counts_T, 0).clamp_min(0)
        first_T = torch.where(state["first_T"].isnan() & counts_T, losses_T, state["first_T"])
        left_T = torch.where(counts_T, losses_T / first_T, 0.0).nan_to_num(nan=1.0, posinf=1e6).clamp(0, 1e6)
        relative_T = left_T / (left_T.sum() / tasks).clamp_min(1e-300)

        weight_T = state["weight_T"]
        gap_T = weight_T * norm_T - (weight_T * norm_T).sum() / tasks * relative_T**self.alpha
        gap_T = gap_T.where(gap_T.abs() > 1e-12 * weight_T * norm_T, 0.0)  # the sign of rounding is none
        grad_T = norm_T * gap_T.sign()  # the target counts as constant
        mean_T = torch.where(counts_T, 0.9 * state["mean_T"] + 0.1 * grad_T, state["mean_T"])
        square_T = torch.where(counts_T, 0.999 * state["square_T"] + 0.001 * grad_T.square(), state["square_T"])
        steps_T = state["steps_T"] + counts_T
        count_T = steps_T.clamp_min(1)
        step_T = (mean_T / (1 - 0.9**count_T)) / ((square_T / (1 - 0.999**count_T)).sqrt() + 1e-8)
        moved_T = (weight_T - self.lr * step_T).clamp_min(1e-3) * counts_T
        moved_T = torch.where(counts_T, moved_T * ((weight_T * counts_T).sum() / moved_T.sum().clamp_min(1e-300)), weight_T)
        after = {"weight_T": moved_T, "mean_T": mean_T, "square_T": square_T, "steps_T": steps_T, "first_T": first_T}
        after["fallbacks"] = state["fallbacks"] + (present_T & ~counts_T).any()
        return (weight_T * present_T).float(), after
