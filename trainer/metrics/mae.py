"""Mean absolute error."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, R resamples


class MeanAbsoluteError(Metric):
    """Mean of |prediction - target|, in the units of the target; 0 is best."""

    higher_is_better: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    kind: Literal["mae"] = "mae"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.regression import mean_absolute_error

        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(mean_absolute_error(score.double(), target.double()))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        error_N = (score.double() - target.double()).abs()
        return count_RN.double() @ error_N / count_RN.sum(1)
