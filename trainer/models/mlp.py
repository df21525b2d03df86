"""Multilayer perceptron over any mix of numbers, vectors, categories and (flattened) images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainer.parts import Model

if TYPE_CHECKING:
    from torch import nn


class Mlp(Model):
    """Linear layers with an activation after each; categories enter one-hot."""

    takes: ClassVar[frozenset[str] | None] = frozenset({"number", "vector", "category", "image"})

    kind: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1, le=2**20)]] = Field([128, 128], min_length=1, description="Width of each layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of activations dropped in training.")
    activation: Literal["gelu", "relu", "silu", "tanh"] = Field("gelu", description="Nonlinearity.")

    def build(self, inputs: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A module over the concatenated inputs; D is the last width."""
        from torch import nn

        from trainer import nets

        classes = [len(i["classes"]) if i["kind"] == "category" else 0 for i in inputs]
        width = sum(c or math.prod(i["shape"]) for c, i in zip(classes, inputs, strict=True))
        activation = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}[self.activation]
        return nets.Mlp(classes, [width, *self.hidden], self.dropout, activation)
