"""Whether the order is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, R resamples


class Spearman(Metric):
    """Rank correlation of prediction and target, ties sharing their mean rank: -1 to 1. NaN where either is constant.

    Source: Spearman, The Proof and Measurement of Association between Two Things, 1904.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"number"})
    kind: Literal["spearman"] = "spearman"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        import torch
        from torchmetrics.functional.regression import pearson_corrcoef

        if len(target) < 2 or not score.isfinite().all() or (target == target[0]).all() or (score == score[0]).all():
            return float("nan")
        # ranks of our own: spearman_corrcoef of torchmetrics sums the ranks of ties in int32
        once_1N = torch.ones(1, len(target), dtype=torch.float64)
        return float(pearson_corrcoef(_ranks(score, once_1N)[0], _ranks(target, once_1N)[0]))

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        score_RN, target_RN = _ranks(score, count_RN), _ranks(target, count_RN)
        together_R = (count_RN * score_RN * target_RN).sum(1)
        apart_R = ((count_RN * score_RN.square()).sum(1) * (count_RN * target_RN.square()).sum(1)).sqrt()
        return together_R / apart_R  # 0 / 0 where either is constant


def _ranks(value_N: Tensor, count_RN: Tensor) -> Tensor:
    """Mean rank of each row among the rows drawn, less the mean of all ranks: `[R, N]`."""
    import torch

    ordered, order = value_N.sort()
    drawn_R1N = torch.nn.functional.pad(count_RN[:, order].cumsum(1), (1, 0))
    first_N = torch.searchsorted(ordered, value_N)
    last_N = torch.searchsorted(ordered, value_N, right=True)
    return (drawn_R1N[:, first_N] + drawn_R1N[:, last_N] - drawn_R1N[:, -1:]) / 2
