"""Dynamic weight average: tasks whose loss falls slowest weigh most.

Source: Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, eq. 7.
Ours, not TorchJD's: it has to know which tasks a step lacks, and its state has to go into a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class Dwa(Balancer):
    """Weighs by the ratio of a task's mean loss over the last two stretches of training (DWA).

    The paper's stretch is an epoch; ours is `window` steps, since epochs of different datasets don't line up. Until a task
    has two of them its ratio is 1. Weights sum to the number of tasks in the step, as in the paper.
    """

    kind: Literal["dwa"] = "dwa"
    temperature: float = Field(2.0, gt=0, description="Higher brings the weights closer together.")
    window: int = Field(100, ge=1, description="Steps over which a loss is averaged.")

    def init(self, tasks: Sequence[str]) -> State:
        """Nothing seen; means that are not known yet are NaN."""
        import torch

        zeros, unknown = torch.zeros(len(tasks), dtype=torch.float64), torch.full((len(tasks),), torch.nan, dtype=torch.float64)
        return {"steps": 0, "sum_T": zeros, "count_T": zeros.clone(), "older_T": unknown, "newer_T": unknown.clone()}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        older_T, newer_T = state["older_T"], state["newer_T"]
        ratio_T = (newer_T / older_T).nan_to_num(nan=1.0).clamp(0, 1e6)  # from 0 to 0 is no progress: 1
        weight_T = (ratio_T / self.temperature).masked_fill(~present_T, -torch.inf).softmax(0).nan_to_num() * present_T.sum()

        counts_T = present_T & loss_T.isfinite()
        sum_T = state["sum_T"] + loss_T.double().nan_to_num() * counts_T
        count_T = state["count_T"] + counts_T
        steps = state["steps"] + 1
        if steps == self.window:
            seen_T = count_T > 0  # a task that a whole stretch lacks keeps what is known of it
            older_T, newer_T = torch.where(seen_T, newer_T, older_T), torch.where(seen_T, sum_T / count_T, newer_T)
            steps, sum_T, count_T = 0, torch.zeros_like(sum_T), torch.zeros_like(count_T)
        return weight_T.float(), {"steps": steps, "sum_T": sum_T, "count_T": count_T, "older_T": older_T, "newer_T": newer_T}
