"""What metrics share that are the share of rows of which something is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# N rows, R resamples


class Share(Metric):
    """Mean of `hits` over rows. Resampling draws the rows that are asked about, not those that they are held against."""

    def hits(self, score: Tensor, target: Tensor) -> Tensor | None:
        """1 for each row of which it is true, else 0: float `[N]`. None: it is not defined."""
        raise NotImplementedError

    def _defined(self, score: Tensor, target: Tensor) -> Tensor | None:
        return self.hits(score, target) if len(target) and score.isfinite().all() else None

    def compute(self, score: Tensor, target: Tensor, classes: int) -> float:
        hit_N = self._defined(score, target)
        return float("nan") if hit_N is None else float(hit_N.mean())

    def resampled(self, score: Tensor, target: Tensor, classes: int, count_RN: Tensor) -> Tensor:
        import torch

        hit_N = self._defined(score, target)
        return torch.full((len(count_RN),), torch.nan) if hit_N is None else count_RN @ hit_N.to(count_RN) / count_RN.sum(1)
