"""Weights drawn anew in every step.

Source: Lin, Ye, Zhang & Tsang, Reasonable Effectiveness of Random Weighting, TMLR 2022, algorithm 2 (RLW, normal distribution).
Ours, not TorchJD's, since that one draws from the global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.balancers.draws import generator
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class Random(Balancer):
    """The softmax of normal draws (RLW). A baseline: whatever claims to balance should beat it.

    Weights sum to the number of tasks in the step (in the paper to 1), so they average 1.
    """

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, description="Another seed draws other weights.")

    def init(self, tasks: Sequence[str]) -> State:
        """No draws so far."""
        return {"draws": 0}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        draw_T = torch.randn(len(loss_T), generator=generator(self.seed, state["draws"]), dtype=torch.float64).to(loss_T.device)
        weight_T = draw_T.masked_fill(~present_T, -torch.inf).softmax(0) * present_T.sum()
        return weight_T.nan_to_num().float(), {**state, "draws": state["draws"] + 1}
