"""Models of a user's own, for tests of where task gradients meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import trainer


class Bare(nn.Module):
    """A model with a weight, and no layer that could stand for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.out_features = nn.Parameter(torch.ones(width)), width

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


class Sides(nn.Module):
    """An encoder for each half of its input, each with a balance point, and a layer behind them.

    Args:
        width: of the input.
        says: whether it calls `balance_point`.
        checkpointed: what of it runs inside an activation checkpoint: `all`, `encoders`, `join` or nothing.
        reentrant: the kind of checkpoint.
    """

    def __init__(self, width: int, says: bool = True, checkpointed: str = "", reentrant: bool = False) -> None:
        super().__init__()
        self.half, self.says, self.checkpointed, self.reentrant = width // 2, says, checkpointed, reentrant
        self.left, self.right = (nn.Sequential(nn.Linear(n, 9), nn.Tanh()) for n in (self.half, width - self.half))
        self.join, self.out_features = nn.Linear(18, 8), 8

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        points = self.left(x[:, : self.half]), self.right(x[:, self.half :])
        return tuple(map(trainer.balance_point, points)) if self.says else points

    def whole(self, x: Tensor) -> Tensor:
        return torch.tanh(self.join(torch.cat(self.encode(x), 1)))

    def forward(self, x: Tensor) -> Tensor:
        run = lambda part, *given: checkpoint(part, *given, use_reentrant=self.reentrant)  # noqa: E731
        x = x.flatten(1).requires_grad_(self.reentrant)
        if self.checkpointed == "all":
            return run(self.whole, x)
        if self.checkpointed == "encoders":
            return torch.tanh(self.join(torch.cat(run(self.encode, x), 1)))
        if self.checkpointed == "join":
            return torch.tanh(run(self.join, torch.cat(self.encode(x), 1)))
        return self.whole(x)


def bare(inputs: list[Mapping[str, Any]]) -> nn.Module:
    """`kind: balance_inputs:bare`."""
    return Bare(_width(inputs[0]))


def sides(inputs: list[Mapping[str, Any]], **args: Any) -> nn.Module:
    """`kind: balance_inputs:sides`."""
    return Sides(_width(inputs[0]), **args)


def _width(column: Mapping[str, Any]) -> int:
    return math.prod(column["shape"])
