"""Absolute error of a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.numbers import paired, present
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
        return present(target)

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum of absolute differences, float32."""
        import torch

        return torch.nn.functional.l1_loss(*paired(output_BK, target), reduction="sum")

    def predict(self, output_BK: Tensor) -> Tensor:
        """Standardised values `[B]`."""
        return output_BK[:, 0].float()
