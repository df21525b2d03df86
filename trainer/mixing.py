"""What mixers share: drawing one unit (a dataset or a task) a step, as a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Over = Literal["datasets", "tasks"]


def units(rows_T: np.ndarray, groups_T: Sequence[str], over: Over) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn: `member_UT` bool (which tasks unit u trains) and `rows_U` int64."""
    names = list(groups_T) if over == "datasets" else [str(t) for t in range(len(groups_T))]
    member_UT = np.array([[name == unit for name in names] for unit in dict.fromkeys(names)])
    rows_U = np.array([rows_T[member].max() for member in member_UT])
    return member_UT, rows_U


def draw(weight_U: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Unit of each step, int64 `[steps]`, with probability proportional to `weight_U`.

    Step i takes the i-th number of a counter-based stream, so it does not depend on `steps`.
    """
    uniform = np.random.Generator(np.random.Philox(key=seed)).random(steps)
    edges = np.cumsum(weight_U, dtype=np.float64)
    return np.minimum(np.searchsorted(edges / edges[-1], uniform, side="right"), len(edges) - 1)


def steps_one_at_a_time(rows_U: np.ndarray, epochs: float, batch: int) -> int:
    """Steps after which as many rows were drawn as all units hold, `epochs` times."""
    return max(1, math.ceil(epochs * int(rows_U.sum()) / batch))
