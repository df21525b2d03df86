"""Share of left items that find their right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.metrics.retrieval import found
from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, D width, R resamples


class RecallLeftToRight(Metric):
    """Recall@k: rows whose right item is among the k most similar to their left one, of all rows' right items; ties count as found.

    Source: Karpathy & Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015, section 4.1.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    kind: Literal["recall_left_to_right"] = "recall_left_to_right"
    k: int = Field(1, ge=1, description="How many of the most similar items are looked at.")

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        """`score` `[N, 2, D]`: both sides of each row."""
        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float(self._hits(score).mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """Rows are drawn anew; what each is to be found among stays all of them."""
        return count_RN @ self._hits(score).to(count_RN) / count_RN.sum(1)

    def _hits(self, score: Tensor) -> Tensor:
        return found(score[:, 0], score[:, 1], self.k)
