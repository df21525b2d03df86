"""Share of the target's variance that is explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, R resamples


class R2(Metric):
    """Coefficient of determination: 1 is best, 0 is as good as the mean, below 0 worse. NaN where the target is constant."""

    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    kind: Literal["r2"] = "r2"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.regression import r2_score

        if len(target) < 2 or not score.isfinite().all() or (target == target[0]).all():
            return float("nan")
        return float(r2_score(*_scaled(score, target)))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        import torch

        score_N, target_N = _scaled(score, target)
        count_RN = count_RN.double()
        rows_R = count_RN.sum(1)
        residual_R = count_RN @ (score_N - target_N).square()
        spread_R = count_RN @ target_N.square() - (count_RN @ target_N).square() / rows_R
        # the same value drawn every time leaves rounding only
        constant_R = ((count_RN > 0) & (target_N != target_N[count_RN.argmax(1)][:, None])).sum(1) == 0
        return torch.where(constant_R, torch.nan, 1 - residual_R / spread_R)


def _scaled(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both shifted and scaled alike, which R2 does not notice, so that the target has mean 0 and deviation 1000.

    torchmetrics takes sums of squares below 1e-4 for 0 and subtracts squares of the mean.
    """
    target = target.double()
    scale = 1e3 / target.std(correction=0)
    return (score.double() - target.mean()) * scale, (target - target.mean()) * scale
