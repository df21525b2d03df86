"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.parts import Optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer as TorchOptimizer


class Sgd(Optimizer):
    """Gradient descent with (Nesterov) momentum and L2 weight decay."""

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, gt=0, lt=1, description="Share of the last update that is kept.")
    nesterov: bool = Field(False, description="Look ahead (Sutskever et al., ICML 2013).")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, mixed into the gradient.")

    def build(self, params: list[nn.Parameter]) -> TorchOptimizer:
        """`torch.optim.SGD` over `params`."""
        import torch

        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)
