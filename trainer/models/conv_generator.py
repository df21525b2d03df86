"""Convolutional generator: noise, and what it is told, to images.

Source: Radford, Metz & Chintala, Unsupervised Representation Learning with Deep Convolutional GANs, ICLR 2016; enlarged by repetition and
convolution as in Odena, Dumoulin & Olah, Deconvolution and Checkerboard Artifacts, Distill 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class ConvGenerator(Model):
    """A linear layer, then blocks that double the size; group norm, so that an image doesn't depend on those made beside it."""

    takes: ClassVar[frozenset[str] | None] = frozenset({"category"})

    kind: Literal["conv_generator"] = "conv_generator"
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 14)]], Field(min_length=3, max_length=3)] = Field(
        description="[channels, height, width] of the images: that of the column it imitates."
    )
    latent: int = Field(64, ge=1, le=2**16, description="Numbers of noise for an image.")
    channels: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(
        [64, 32], min_length=1, description="Width of each block; all but the first double the size."
    )
    groups: int = Field(8, ge=1, description="Groups of the normalisation; divides every width.")

    @model_validator(mode="after")
    def _groups_divide(self) -> ConvGenerator:
        wrong = [width for width in self.channels if width % self.groups]
        if wrong:
            raise ValueError(f"channels {wrong} are not divisible by groups {self.groups}")
        return self

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module over categories `[B]` and `noise=[B, latent]` (default: zeros); gives `[B, C*H*W]`."""
        from trainer import nets

        return nets.Generator([len(i["classes"]) for i in inputs], self.latent, self.shape, self.channels, self.groups)
