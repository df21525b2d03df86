"""Mean and spread of columns of numbers, one batch at a time.

Source: Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.parts import State


def add(state: State, values: np.ndarray) -> State:
    """Add float64 `[rows, n]` to a summary that starts from `{}`; NaN is left out."""
    there = ~np.isnan(values)
    count = there.sum(0).astype(np.float64)
    safe = np.maximum(count, 1)
    mean = np.where(there, values, 0).sum(0) / safe
    m2 = np.where(there, values - mean, 0).__pow__(2).sum(0)
    low = np.where(there, values, np.inf).min(0, initial=np.inf)
    high = np.where(there, values, -np.inf).max(0, initial=-np.inf)
    if state:
        old_count, old_mean, old_m2 = (np.asarray(state[name]) for name in ("count", "mean", "m2"))
        total = np.maximum(old_count + count, 1)
        delta = mean - old_mean
        m2 = m2 + old_m2 + delta**2 * old_count * count / total
        mean = old_mean + delta * count / total
        low, high = np.minimum(low, state["low"]), np.maximum(high, state["high"])
        count = count + old_count
    return {"count": count.tolist(), "mean": mean.tolist(), "m2": m2.tolist(), "low": low.tolist(), "high": high.tolist()}


def summary(state: State) -> dict[str, list[Any]]:
    """`mean`, `std` (of the population), `low` and `high`, a list of n each; None where nothing was there.

    Rounded to 12 digits, so that the last bits don't tell how the rows were cut into batches.
    """
    count = np.asarray(state["count"])
    std = np.sqrt(np.asarray(state["m2"]) / np.maximum(count, 1))
    columns = {"mean": state["mean"], "std": std.tolist(), "low": state["low"], "high": state["high"]}
    return {name: [rounded(value) if n else None for value, n in zip(column, count, strict=True)] for name, column in columns.items()}


def rounded(value: float) -> float:
    """To 12 significant digits."""
    return float(f"{value:.12g}")


def scale(std: list[float | None]) -> list[float]:
    """What to divide by: 1 where nothing varies, since 0 would not do."""
    return [value or 1.0 for value in std]
