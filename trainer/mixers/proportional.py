"""Datasets drawn by size.

Source: Sanh et al., A Hierarchical Multi-task Approach, AAAI 2019 (proportional sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from trainer import mixing
from trainer.parts import Mixer


class Proportional(Mixer):
    """A step sees one dataset, drawn with probability proportional to its training rows."""

    kind: Literal["proportional"] = "proportional"
    over: mixing.Over = Field("datasets", description="Draw a dataset and train all its tasks, or draw a single task.")

    def schedule(self, rows_T: np.ndarray, groups_T: Sequence[str], steps: int, seed: int) -> np.ndarray:
        """The tasks of the drawn unit."""
        member_UT, rows_U = mixing.units(rows_T, groups_T, self.over)
        return member_UT[mixing.draw(rows_U, steps, seed)]

    def steps(self, rows_T: np.ndarray, groups_T: Sequence[str], epochs: float, batch: int) -> int:
        """Steps that draw as many rows as there are."""
        return mixing.steps_one_at_a_time(mixing.units(rows_T, groups_T, self.over)[1], epochs, batch)
