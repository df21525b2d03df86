"""Transformer encoder over tokens.

Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017; pre-norm as in Xiong et al., ICML 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class TextTransformer(Model):
    """Pre-norm transformer encoder, mean over the tokens that are there."""

    takes: ClassVar[frozenset[str] | None] = frozenset({"text"})
    most_inputs: ClassVar[int | None] = 1

    kind: Literal["text_transformer"] = "text_transformer"
    width: int = Field(128, ge=1, le=2**16, description="Width of the representation; divisible by `heads`.")
    layers: int = Field(2, ge=1, le=1024, description="Transformer layers.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    feedforward: int | None = Field(None, ge=1, description="Width inside a layer. Default: 4 x width.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped in training.")

    @model_validator(mode="after")
    def _heads_divide(self) -> TextTransformer:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module over tokens `[B, L]`; D is `width`."""
        from trainer import nets

        text = inputs[0]
        feedforward = self.feedforward or 4 * self.width
        return nets.TextEncoder(
            text["vocab_size"], text["shape"][0], self.width, self.layers, self.heads, feedforward, self.dropout, text["pad"]
        )
