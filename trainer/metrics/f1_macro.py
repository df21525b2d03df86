"""F1 of each class, averaged over classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, C classes that occur or are predicted, R resamples


class F1Macro(Metric):
    """Mean over the classes that occur or are predicted of `2 tp / (2 tp + fp + fn)`: 0 to 1."""

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["f1_macro"] = "f1_macro"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.classification import multiclass_f1_score

        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(multiclass_f1_score(score.argmax(1), target, classes, average="macro", validate_args=False))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        import torch

        guess_N = score.argmax(1)
        class_C = torch.cat([guess_N, target]).unique()
        own_NC = (target[:, None] == class_C).to(count_RN)
        guess_NC = (guess_N[:, None] == class_C).to(count_RN)
        hit_RC = count_RN @ (own_NC * guess_NC)
        # 0 / 0 is NaN: a class that is neither drawn nor predicted has no say
        return (2 * hit_RC / (count_RN @ own_NC + count_RN @ guess_NC)).nanmean(1)
