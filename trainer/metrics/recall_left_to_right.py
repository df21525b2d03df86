"""Share of left items that find their right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.metrics.retrieval import found
from trainer.metrics.share import Share

if TYPE_CHECKING:
    from torch import Tensor

# N rows, D width


class RecallLeftToRight(Share):
    """Recall@k: rows whose right item is among the k most similar to their left one, of all rows' right items; ties count as found.

    Source: Karpathy & Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015, section 4.1.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"pairs"})
    kind: Literal["recall_left_to_right"] = "recall_left_to_right"
    k: int = Field(1, ge=1, description="How many of the most similar items are looked at.")

    def hits(self, score: Tensor, target: Tensor) -> Tensor:
        """`score` `[N, 2, D]`: both sides of each row."""
        return found(score[:, 0], score[:, 1], self.k)
