"""Root mean squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, R resamples


class RootMeanSquaredError(Metric):
    """Square root of the mean of (prediction - target)², in the units of the target; 0 is best."""

    higher_is_better: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    kind: Literal["rmse"] = "rmse"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.regression import mean_squared_error

        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(mean_squared_error(score.double(), target.double(), squared=False))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        error_N = (score.double() - target.double()).square()
        return (count_RN.double() @ error_N / count_RN.sum(1)).sqrt()
