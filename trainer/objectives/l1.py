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

    kind: Literal["l1"] = "l1"

    def outputs(self, target: Mapping[str, Any]) -> int:
        """One value."""
        return 1

    def count(self, target: Tensor) -> Tensor:
        """Rows with a number."""
        return (~target.isnan()).sum().float()

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum of absolute differences, float32."""
        # the target is replaced before the difference is taken: NaN * 0 would still be NaN in the gradient
        there = ~target.isnan()
        return ((output_BK[:, 0].float() - target.nan_to_num()) * there).abs().sum()

    def predict(self, output_BK: Tensor) -> Tensor:
        """Standardised values `[B]`."""
        return output_BK[:, 0].float()
