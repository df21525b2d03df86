"""Area under the receiver operating characteristic."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, K classes, P rows of one class, R resamples


class Auroc(Metric):
    """Probability that a row of a class is scored above a row of another, ties counting half: 0 to 1.

    Two classes: of the second. More: each class against the rest, averaged over the classes that
    occur. NaN where fewer than two occur.

    Source: Hanley & McNeil, The Meaning and Use of the Area under a ROC Curve, Radiology 1982.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"category"})
    kind: Literal["auroc"] = "auroc"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

        present, renumbered = target.unique(return_inverse=True)
        if len(present) < 2 or not score.isfinite().all():
            return float("nan")
        score = score.clamp(0, 1)  # torchmetrics takes a probability of 1.0000001 for a logit
        if classes == 2:
            return float(binary_auroc(score[:, 1], target, validate_args=False))
        return float(multiclass_auroc(score[:, present], renumbered, len(present), average="macro", validate_args=False))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        import torch

        columns = [1] if classes == 2 else target.unique().tolist()
        return torch.stack([_area(score[:, k].clamp(0, 1), target == k, count_RN) for k in columns], 1).nanmean(1)


def _area(score_N: Tensor, own_N: Tensor, count_RN: Tensor) -> Tensor:
    """Mann-Whitney's U over the number of pairs, `[R]`; NaN where either side was not drawn."""
    import torch

    rest = torch.nonzero(~own_N).squeeze(1)
    rest = rest[score_N[rest].argsort()]
    below_R1N = torch.nn.functional.pad(count_RN[:, rest].cumsum(1), (1, 0))
    # drawn rows of the rest with a lower score, and with a lower or equal one, for each row of the class
    own_P = torch.nonzero(own_N).squeeze(1)
    first_P = torch.searchsorted(score_N[rest], score_N[own_P])
    last_P = torch.searchsorted(score_N[rest], score_N[own_P], right=True)
    own_RP = count_RN[:, own_P]
    wins_R = (own_RP * (below_R1N[:, first_P] + below_R1N[:, last_P])).sum(1) / 2
    return wins_R / (own_RP.sum(1) * below_R1N[:, -1])
