"""Whether made images look like real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.metrics.share import Share

if TYPE_CHECKING:
    from torch import Tensor

# N rows, D features


class ManifoldPrecision(Share):
    """Share of made images that lie among the real ones: quality, whatever their variety; 1 is best.

    An image lies among others where it is no farther from one of them than that one's k-th neighbour is. Resampling draws the images that
    are asked about, not those they are held against: repeated rows would have neighbours at distance 0.
    Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS 2019, equations 1 and 2.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"images"})
    kind: Literal["manifold_precision"] = "manifold_precision"
    k: int = Field(3, ge=1, le=1000, description="Neighbours that say how far a neighbourhood reaches.")

    def hits(self, score: Tensor, target: Tensor) -> Tensor | None:
        """`score` and `target` `[N, D]`: features of made and of real images."""
        from trainer.manifold import within

        return within(score, target, self.k) if len(target) > self.k else None
