"""Gradient sign dropout: where tasks disagree on the sign of a coordinate, one sign is picked.

Source: Chen, Ngiam, Huang, Luong, Kretzschmar, Chai & Anguelov, Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign
Dropout, NeurIPS 2020, eq. 1 and algorithm 1, lines 10-15, with the identity as f.
Ours, not TorchJD's, since that one draws from the global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.balancers.draws import generator
from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class GradDrop(Balancer):
    """In each coordinate of the representation of each row, keeps only the positive or the negative task gradients (GradDrop).

    Positive ones with a probability of `(1 + sum g / sum |g|) / 2`. Where tasks agree nothing is dropped: the plain sum. Ranks pick
    with the same numbers, each for its own rows, so what is picked for a row depends on how many ranks there are.
    """

    needs_grads: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False

    kind: Literal["grad_drop"] = "grad_drop"
    leak: float = Field(0.0, ge=0, le=1, description="Share of every gradient that is kept whatever is picked.")
    seed: int = Field(0, ge=0, description="Another seed picks other signs.")

    def init(self, tasks: Sequence[str]) -> State:
        """No draws so far."""
        return {"draws": 0}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """Ones where present."""
        return present_T.to(loss_T.dtype), state

    def combine(self, grads_TN: Tensor, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        import torch

        rows_TN = grads_TN.float() * present_T[:, None]
        # a share of the largest, so that neither sum overflows nor underflows
        share_TN = rows_TN / rows_TN.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny)
        purity_N = (1 + share_TN.sum(0) / share_TN.abs().sum(0).clamp_min(torch.finfo(torch.float32).tiny)) / 2
        device = grads_TN.device
        draw_N = torch.rand(purity_N.shape, generator=generator(self.seed, state["draws"], device), device=device)
        kept_TN = torch.where(purity_N > draw_N, rows_TN > 0, rows_TN < 0)
        update_N = (rows_TN * torch.where(kept_TN, 1.0, self.leak)).sum(0)
        return update_N.to(grads_TN.dtype), {**state, "draws": state["draws"] + 1}
