"""Convolutional critic: an image, and what it is said to show, to one number.

Sources: spectral normalisation: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018; the condition
enters by projection: Miyato & Koyama, cGANs with Projection Discriminator, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class ConvCritic(Model):
    """Convolutions with leaky ReLU, no normalisation of activations: it judges each image by itself."""

    takes: ClassVar[frozenset[str] | None] = frozenset({"image", "category"})

    kind: Literal["conv_critic"] = "conv_critic"
    channels: list[Annotated[int, Field(ge=1, le=2**16)]] = Field(
        [32, 64], min_length=1, description="Width of each block; all but the first halve the image."
    )
    grid: int = Field(2, ge=1, le=64, description="Side of the map that the last block is pooled to.")
    spectral_norm: bool = Field(True, description="Divide every weight by its largest singular value; needless with a gradient penalty.")

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module over an image `[B, C, H, W]` and categories `[B]`; gives `[B, 1]`."""
        from trainer import nets

        classes = [len(i["classes"]) for i in inputs[1:]]
        return nets.Critic(inputs[0]["shape"][0], self.channels, self.grid, classes, self.spectral_norm)
