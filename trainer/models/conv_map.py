"""Small convolutional network that keeps where things are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class ConvMap(Model):
    """Convolution, group norm and GELU blocks that end in a map `[B, C, H, W]`.

    The map is the representation, so task gradients meet there. Heads that look at one place after another (`detection`) stand on it as it
    is, all others on its mean and its maximum over the places.
    """

    takes: ClassVar[frozenset[str] | None] = frozenset({"image"})
    most_inputs: ClassVar[int | None] = 1
    maps: ClassVar[bool | None] = True

    kind: Literal["conv_map"] = "conv_map"
    channels: list[Annotated[int, Field(ge=1, le=2**16)]] = Field([16, 32, 64, 64], min_length=1, description="Width of each block.")
    stride: Literal[1, 2, 4, 8, 16, 32] = Field(4, description="Pixels of the image to a cell of the map, along a side.")
    groups: int = Field(8, ge=1, description="Groups of the normalisation; divides every width.")

    @model_validator(mode="after")
    def _fits(self) -> ConvMap:
        wrong = [width for width in self.channels if width % self.groups]
        if wrong:
            raise ValueError(f"channels {wrong} are not divisible by groups {self.groups}")
        if 2 ** (len(self.channels) - 1) < self.stride:
            raise ValueError(f"{len(self.channels)} blocks, all but the first of which may halve, don't reach stride {self.stride}")
        return self

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module from `[B, C, H, W]` to a map of as many channels as the last block is wide, `stride` times smaller."""
        from trainer import nets

        return nets.ConvMap(inputs[0]["shape"][0], self.channels, self.stride, self.groups)
