"""Intervals by resampling: what another draw of test rows, and another training seed, could have given.

Shape suffixes: N test rows, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.parts import Metric

if TYPE_CHECKING:
    from torch import Tensor

# elements of one block of counts: small enough for the cache of a core, large enough for few Python calls
_BLOCK = 1 << 20


def counts(rows: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, float32 blocks `[some of R, N]`; the same for every caller with as many rows.

    So models that are judged on the same rows are judged on the same resamples: differences pair up.
    """
    rng = np.random.default_rng([rows, resamples])
    block = max(1, _BLOCK // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float32)


def on_all_rows(metrics: Mapping[str, Metric], scores: Sequence[Tensor], target: Tensor, classes: int) -> list[dict[str, float]]:
    """Each metric of each model over the rows as they are; NaN where it is not defined. Arguments as of `resample`."""
    return [{name: metric.compute(score, target, classes) for name, metric in metrics.items()} for score in scores]


def resample(
    metrics: Mapping[str, Metric],
    scores: Sequence[Tensor],
    target: Tensor,
    classes: int,
    resamples: int,
    points: Sequence[Mapping[str, float]],
) -> list[dict[str, np.ndarray]]:
    """Each metric of each model over the same resamples of the rows: float64 `[R]`, NaN where it is not defined.

    Args:
        scores: of each model, as `Metric.compute` takes them.
        target: `[N]`.
        points: what `on_all_rows` gives: a metric that is not defined on all rows is on no resample.
    """
    import torch

    found = [{name: np.full(resamples, np.nan) for name in metrics} for _ in scores]
    if not len(target):
        return found
    judges = [{name: metric for name, metric in metrics.items() if np.isfinite(values[name])} for values in points]
    start = 0
    for block in counts(len(target), resamples):
        count_RN = torch.from_numpy(block)
        for score, judge, values in zip(scores, judges, found, strict=True):
            for name, metric in judge.items():
                values[name][start : start + len(block)] = metric.resampled(score, target, classes, count_RN).double().numpy()
        start += len(block)
    return found


def interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval over the resamples in which the value is defined; NaN where it never is.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R):
        return float("nan"), float("nan")
    low, high = np.quantile(values_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def over_seeds(models: Sequence[tuple[np.ndarray, np.ndarray]], confidence: float) -> list[np.ndarray]:
    """The mean over the seeds of each model when rows and seeds are both drawn anew: `[R]` a model.

    Args:
        models: of each model the values of its seeds `[S]` and their resamples over rows `[S, R]`.

    A few seeds drawn with replacement scatter less than the population they came from: with 3 seeds
    a plain 95 % interval holds the truth in 80 % of cases where training noise dominates. So the
    scatter of drawn seeds about their mean is widened by sqrt(S / (S - 1)) and by Student's t over
    the normal quantile, with the degrees of freedom of Welch for all models together.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015, section 4.
    """
    from scipy import stats

    share = [np.var(point_S, ddof=1) / len(point_S) if len(point_S) > 1 else 0.0 for point_S, _ in models]
    total = sum(share)
    wider = 1.0
    if total > 0:
        freedom = total**2 / sum(v**2 / (len(point_S) - 1) for v, (point_S, _) in zip(share, models, strict=True) if v > 0)
        upper = (1 + confidence) / 2
        wider = stats.t.ppf(upper, freedom) / stats.norm.ppf(upper)
    rng = np.random.default_rng(0)
    means = []
    for _, values_SR in models:
        seeds, resamples = values_SR.shape
        mean_R = values_SR.mean(0)
        if seeds > 1:
            drawn_SR = rng.integers(0, seeds, (seeds, resamples))
            other_R = np.take_along_axis(values_SR, drawn_SR, 0).mean(0)
            mean_R = mean_R + (other_R - mean_R) * np.sqrt(seeds / (seeds - 1)) * wider
        means.append(mean_R)
    return means
