"""Datasets in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from trainer import mixing
from trainer.parts import Mixer


class RoundRobin(Mixer):
    """A step sees one dataset, each in its turn, whatever its size."""

    kind: Literal["round_robin"] = "round_robin"
    over: mixing.Over = Field("datasets", description="Take turns between datasets, or between single tasks.")

    def schedule(self, rows_T: np.ndarray, groups_T: Sequence[str], steps: int, seed: int) -> np.ndarray:
        """Unit `step % U`."""
        member_UT, _ = mixing.units(rows_T, groups_T, self.over)
        return member_UT[np.arange(steps) % len(member_UT)]

    def steps(self, rows_T: np.ndarray, groups_T: Sequence[str], epochs: float, batch: int) -> int:
        """Steps that draw as many rows as there are."""
        return mixing.steps_one_at_a_time(mixing.units(rows_T, groups_T, self.over)[1], epochs, batch)
