"""Fast adaptive multitask optimisation: all log losses are to fall at the same rate, without task gradients.

Source: Liu, Feng, Stone & Liu, FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, algorithm 1 and eq. 9-10.
Ours, not TorchJD's, since the logits live in the balancer's state, and tasks may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class Famo(Balancer):
    """Weights `softmax(logits) / loss`, scaled to sum to the number of tasks in the step (in the paper to 1).

    The logits descend by Adam on how much each log loss fell. The paper measures that with a second forward pass over the batch
    just trained on; here it is the change from the task's last batch to this one, which costs nothing and is noisier.
    Losses count as no less than 1e-6 of their mean.
    """

    kind: Literal["famo"] = "famo"
    lr: float = Field(0.025, gt=0, description="Learning rate of the logits.")
    decay: float = Field(1e-3, ge=0, description="Weight decay of the logits.")

    def init(self, tasks: Sequence[str]) -> State:
        """Equal logits; a loss that is not known yet is NaN."""
        import torch

        zeros = torch.zeros(len(tasks), dtype=torch.float64)
        return {
            "logit_T": zeros,
            "mean_T": zeros.clone(),
            "square_T": zeros.clone(),
            "steps_T": zeros.clone(),
            "log_T": torch.full_like(zeros, torch.nan),
        }

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        counts_T = present_T & loss_T.isfinite()
        losses_T = loss_T.double().masked_fill(~counts_T, 0).clamp_min(0)
        floor = (1e-6 * losses_T.sum() / counts_T.sum().clamp_min(1)).clamp_min(1e-300)
        log_T = losses_T.clamp_min(floor).log()

        # the step on the logits that the last step's weights earned
        known_T = counts_T & state["log_T"].isfinite()
        share_T = state["logit_T"].masked_fill(~known_T, -torch.inf).softmax(0).nan_to_num()
        fall_T = torch.where(known_T, state["log_T"] - log_T, 0.0)
        grad_T = share_T * (fall_T - (share_T * fall_T).sum()) + self.decay * state["logit_T"]
        mean_T = torch.where(known_T, 0.9 * state["mean_T"] + 0.1 * grad_T, state["mean_T"])
        square_T = torch.where(known_T, 0.999 * state["square_T"] + 0.001 * grad_T.square(), state["square_T"])
        steps_T = state["steps_T"] + known_T
        count_T = steps_T.clamp_min(1)
        step_T = (mean_T / (1 - 0.9**count_T)) / ((square_T / (1 - 0.999**count_T)).sqrt() + 1e-8)
        logit_T = state["logit_T"] - self.lr * step_T * known_T

        after = {"logit_T": logit_T, "mean_T": mean_T, "square_T": square_T, "steps_T": steps_T}
        after["log_T"] = torch.where(counts_T, log_T, state["log_T"])
        weight_T = (logit_T - log_T).masked_fill(~counts_T, -torch.inf).softmax(0).nan_to_num() * counts_T.sum()
        return torch.where(counts_T, weight_T, present_T.double()).float(), after
