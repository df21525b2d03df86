"""Small convolutional network for images of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class Conv(Model):
    """Convolution, group norm and GELU blocks, pooled to a `grid` x `grid` map: datasets of other image sizes share it."""

    takes: ClassVar[frozenset[str] | None] = frozenset({"image"})
    most_inputs: ClassVar[int | None] = 1

    kind: Literal["conv"] = "conv"
    channels: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(
        [32, 64], min_length=1, description="Width of each block; all but the first halve the image."
    )
    grid: int = Field(2, ge=1, le=64, description="Side of the pooled map.")
    groups: int = Field(8, ge=1, description="Groups of the normalisation; divides every width.")

    @model_validator(mode="after")
    def _groups_divide(self) -> Conv:
        wrong = [width for width in self.channels if width % self.groups]
        if wrong:
            raise ValueError(f"channels {wrong} are not divisible by groups {self.groups}")
        return self

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module over `[B, C, H, W]`; D is the last width times the grid's cells."""
        from trainer import nets

        return nets.ConvTrunk(inputs[0]["shape"][0], self.channels, self.grid, self.groups)
