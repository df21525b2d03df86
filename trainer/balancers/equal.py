"""Every task counts the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer.parts import Balancer, State

if TYPE_CHECKING:
    from torch import Tensor


class Equal(Balancer):
    """Weight 1 for every task of the step: the plain sum of the losses."""

    kind: Literal["equal"] = "equal"

    def weigh(self, loss_T: Tensor, gram_TT: Tensor | None, present_T: Tensor, state: State) -> tuple[Tensor, State]:
        """Ones where present."""
        return present_T.to(loss_T.dtype), state
