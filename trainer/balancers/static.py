"""Weights fixed by the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class Static(Balancer):
    """The weighted sum of the losses, with one weight a task."""

    kind: Literal["static"] = "static"
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1, description="Weight of each task of the phase.")

    def init(self, tasks: Sequence[str]) -> State:
        """The weights as a vector in the order of `tasks`."""
        import torch

        return {"weight_T": torch.tensor([self.weights[task] for task in tasks], dtype=torch.float32)}

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """The fixed weights where present."""
        return state["weight_T"] * present_T, state
