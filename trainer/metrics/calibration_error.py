"""Whether a confidence of 80 % is right 80 % of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, J bins, R resamples


class CalibrationError(Metric):
    """Expected calibration error: |confidence - accuracy| of the most probable class, averaged over bins of confidence; 0 is best.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """

    higher_is_better: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["calibration_error"] = "calibration_error"
    bins: int = Field(15, ge=1, le=1000, description="Bins of equal width between 0 and 1.")

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.classification import multiclass_calibration_error

        if not len(target) or not score.isfinite().all():
            return float("nan")
        # a probability of 1.0000001 would be taken for a logit
        score = score.double().clamp(0, 1)
        return float(multiclass_calibration_error(score, target, classes, n_bins=self.bins, validate_args=False))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        import torch

        sure_N, guess_N = score.double().clamp(0, 1).max(1)
        edges = torch.linspace(0, 1, self.bins + 1, dtype=sure_N.dtype)
        bin_N = torch.bucketize(sure_N, edges, right=True) - 1
        gap_NJ = torch.zeros(len(target), self.bins + 1, dtype=sure_N.dtype)
        gap_NJ[torch.arange(len(target)), bin_N] = sure_N - (guess_N == target).double()
        return (count_RN @ gap_NJ.to(count_RN)).abs().sum(1) / count_RN.sum(1)
