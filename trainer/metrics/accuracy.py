"""Share of rows whose most probable class is the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, R resamples


class Accuracy(Metric):
    """Rows classified correctly, over all rows: 0 to 1."""

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["accuracy"] = "accuracy"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.classification import multiclass_accuracy

        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(multiclass_accuracy(score.argmax(1), target, classes, average="micro", validate_args=False))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        hit_N = (score.argmax(1) == target).to(count_RN)
        return count_RN @ hit_N / count_RN.sum(1)
