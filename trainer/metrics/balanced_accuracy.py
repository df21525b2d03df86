"""Accuracy that gives every class the same say, however rare it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, C classes that occur, R resamples


class BalancedAccuracy(Metric):
    """Mean over the classes that occur in the target of the share of their rows classified correctly: 0 to 1.

    Source: Brodersen et al., The Balanced Accuracy and Its Posterior Distribution, ICPR 2010.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["balanced_accuracy"] = "balanced_accuracy"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.classification import multiclass_accuracy

        if not len(target) or not score.isfinite().all():
            return float("nan")
        recall_K = multiclass_accuracy(score.argmax(1), target, classes, average="none", validate_args=False).reshape(-1)
        # torchmetrics' own macro average counts a class that is predicted but never right, even where no row has it
        return float(recall_K[target.unique()].double().mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        own_NC = (target[:, None] == target.unique()).to(count_RN)
        hit_N = (score.argmax(1) == target).to(count_RN)
        # 0 / 0 is NaN: a class that was not drawn has no say
        return (count_RN @ (own_NC * hit_N[:, None]) / (count_RN @ own_NC)).nanmean(1)
