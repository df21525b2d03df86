"""Datasets drawn by a tempered size.

Source: Devlin (multilingual BERT), 2018; Raffel et al., T5, JMLR 2020, section 3.5.2 (temperature-scaled mixing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from trainer import mixing
from trainer.parts import Mixer


class Temperature(Mixer):
    """A step sees one dataset, drawn with probability proportional to `rows ** (1 / temperature)`.

    1 is proportional to size; the higher the temperature, the nearer to uniform. An epoch is as many
    rows as all datasets hold together.
    """

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(2.0, gt=0, le=1e6, description="1: by size; large: uniform.")
    over: mixing.Over = Field("datasets", description="Draw a dataset and train all its tasks, or draw a single task.")

    def schedule(self, rows_T: np.ndarray, groups_T: Sequence[str], steps: int, seed: int) -> np.ndarray:
        """The tasks of the drawn unit."""
        member_UT, rows_U = mixing.units(rows_T, groups_T, self.over)
        share_U = rows_U / rows_U.max()
        return member_UT[mixing.draw(share_U ** (1 / self.temperature), steps, seed)]

    def steps(self, rows_T: np.ndarray, groups_T: Sequence[str], epochs: float, batch: int) -> int:
        """Steps that draw as many rows as there are."""
        return mixing.steps_one_at_a_time(mixing.units(rows_T, groups_T, self.over)[1], epochs, batch)
