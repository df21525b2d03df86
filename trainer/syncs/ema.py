"""Exponential moving average of parameters.

Source: Polyak & Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM 1992; for generators Yazıcı et al.,
The Unusual Effectiveness of Averaging in GAN Training, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer.parts import State, Sync

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = "steps"


class Ema(Sync):
    """average = decay * average + (1 - decay) * parameter, in float32, from the first step's parameters on."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, ge=0, lt=1, description="Share of the old average kept in a step.")
    publish: bool = Field(True, description="Whether the average takes the place of the raw parameters in what is evaluated and published.")

    def init(self, pieces: Mapping[str, Tensor]) -> State:
        """The parameters that training starts from."""
        return {_STEPS: 0, **{name: piece.float().clone() for name, piece in pieces.items()}}

    def follow(self, pieces: Mapping[str, Tensor], state: State) -> State:
        """One step of the average."""
        # early averages would be mostly the random start: as in Tarvainen & Valpola, NeurIPS 2017, the decay grows into its value
        decay = min(self.decay, (1 + state[_STEPS]) / (10 + state[_STEPS]))
        for name, piece in pieces.items():
            state[name].lerp_(piece.to(state[name].dtype), 1 - decay)
        return {**state, _STEPS: state[_STEPS] + 1}

    def published(self, whole: Mapping[str, Any]) -> dict[str, Tensor]:
        """The average, unless only checkpoints are to have it."""
        return {name: value for name, value in whole.items() if name != _STEPS} if self.publish else {}
