"""A smooth maximum of the losses.

Source: Lin, Zhang, Yang, Liu, Wang & Zhang, Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024, eq. 5, with an
ideal point of 0 and equal preferences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class SmoothTchebycheff(Balancer):
    """Minimises `mu * log sum_t exp(L_t / (T mu))`: the worst task weighs most (STCH).

    Weights are the softmax of the exponents, times the number of tasks in the step, so that they sum to it (in the paper to 1/T).
    Losses are compared as they are, so tasks should have losses of like size: a change of all scales is a change of `mu`.
    """

    kind: Literal["smooth_tchebycheff"] = "smooth_tchebycheff"
    mu: float = Field(0.1, gt=0, description="Smaller is closer to the maximum alone.")

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        tasks = present_T.sum()
        # a loss that overflowed is the worst there is
        losses_T = loss_T.double().nan_to_num(nan=0.0, posinf=1e38, neginf=-1e38)
        exponent_T = losses_T / (tasks.clamp_min(1) * self.mu)
        return (exponent_T.masked_fill(~present_T, -torch.inf).softmax(0).nan_to_num() * tasks).float(), state
