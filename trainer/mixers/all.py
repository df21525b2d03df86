"""Every task in every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from trainer.parts import Mixer


class All(Mixer):
    """A step sees a batch of every dataset. An epoch is one pass over the longest; shorter ones start over."""

    kind: Literal["all"] = "all"

    def schedule(self, rows_T: np.ndarray, groups_T: Sequence[str], steps: int, seed: int) -> np.ndarray:
        """All True."""
        return np.ones((steps, len(rows_T)), dtype=bool)

    def steps(self, rows_T: np.ndarray, groups_T: Sequence[str], epochs: float, batch: int) -> int:
        """Passes over the longest dataset."""
        return max(1, math.ceil(epochs * int(rows_T.max()) / batch))
