"""What objectives of a number share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def present(target: Tensor) -> Tensor:
    """How many of `target` `[B]` are there (not NaN): a float32 scalar."""
    import torch

    return (~target.isnan()).sum(dtype=torch.float32)


def paired(output_BK: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The value of each row and what it should be, float32 `[B]`.

    Where there is no target the value stands in for it: no loss, and a gradient of exactly 0.
    """
    import torch

    output_B = output_BK[:, 0].float()
    return output_B, torch.where(target.isnan(), output_B.detach(), target)
