"""Absolute error of a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.parts import Objective

if TYPE_CHECKING:
    from torch import Tensor


class MeanAbsoluteError(Objective):
    """Absolute error in standardised units, summed over rows whose number is there (not NaN)."""

    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    counts_rows: ClassVar[bool] = True

    kind: Literal["l1"] = "l1"

    def outputs(self, target: Mapping[str, Any]) -> int:
        """One value."""
        return 1

    def count(self, target: Tensor) -> Tensor:
        """Rows with a number."""
        import torch

        return (~target.isnan()).sum(dtype=torch.float32)

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum of absolute differences, float32."""
        import torch

        output = output_BK[:, 0].float()
        # where there is no target the output stands in for it: no loss, and a gradient of exactly 0
        return torch.nn.functional.l1_loss(output, torch.where(target.isnan(), output.detach(), target), reduction="sum")

    def predict(self, output_BK: Tensor) -> Tensor:
        """Standardised values `[B]`."""
        return output_BK[:, 0].float()
