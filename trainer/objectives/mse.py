"""Squared error of a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.numbers import paired, present
from trainer.parts import Objective

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError(Objective):
    """Squared error in standardised units, summed over rows whose number is there (not NaN)."""

    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    counts_rows: ClassVar[bool] = True

    kind: Literal["mse"] = "mse"

    def outputs(self, target: Mapping[str, Any]) -> int:
        """One value."""
        return 1

    def count(self, target: Tensor) -> Tensor:
        """Rows with a number."""
        return present(target)

    def total(self, output_BK: Tensor, target: Tensor) -> Tensor:
        """Sum of squared differences, float32."""
        import torch

        return torch.nn.functional.mse_loss(*paired(output_BK, target), reduction="sum")

    def predict(self, output_BK: Tensor) -> Tensor:
        """Standardised values `[B]`."""
        return output_BK[:, 0].float()
