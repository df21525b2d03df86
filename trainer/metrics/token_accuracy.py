"""Share of tokens that are right at their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, L tokens, R resamples


class TokenAccuracy(Metric):
    """Tokens of the right texts that stand where they should, over all of those tokens: 0 to 1."""

    targets: ClassVar[frozenset[str]] = frozenset({"tokens"})
    kind: Literal["token_accuracy"] = "token_accuracy"

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        """`score` and `target` `[N, L]`: tokens, padded with 0."""
        if not len(target) or not score.isfinite().all():
            return float("nan")
        there = target > 0
        return float((score.long() == target)[there].double().mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        """Hits over tokens, both summed over the rows drawn."""
        there_NL = target > 0
        hit_N = ((score.long() == target) & there_NL).sum(1).to(count_RN)
        return count_RN @ hit_N / (count_RN @ there_NL.sum(1).to(count_RN))
