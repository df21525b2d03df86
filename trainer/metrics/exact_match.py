"""Share of texts that are written without a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, L tokens, R resamples


class ExactMatch(Metric):
    """Rows whose text is the right one, token by token: 0 to 1."""

    targets: ClassVar[frozenset[str]] = frozenset({"tokens"})
    kind: Literal["exact_match"] = "exact_match"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        """`score` and `target` `[N, L]`: tokens, padded with 0."""
        if not len(target) or not score.isfinite().all():
            return float("nan")
        return float((score.long() == target).all(1).double().mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """A weighted mean."""
        hit_N = (score.long() == target).all(1).to(count_RN)
        return count_RN @ hit_N / count_RN.sum(1)
