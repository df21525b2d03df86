"""Adam with decoupled weight decay.

Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from trainer.parts import Optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer as TorchOptimizer

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optimizer):
    """Adam whose weight decay is not mixed into the gradient moments."""

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Decay of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.01, ge=0, description="Decay per unit of learning rate.")

    def build(self, params: list[nn.Parameter]) -> TorchOptimizer:
        """`torch.optim.AdamW` over `params`."""
        import torch

        # torch's own choice on a CPU goes through the parameters one by one, eight passes over each
        fused = all(p.device.type == "cpu" for p in params) or None
        return torch.optim.AdamW(params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused)
