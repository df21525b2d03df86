"""A fixed number of quantities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from trainer.columns import moments, nested
from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = float(np.finfo(np.float32).max)


class Vector(Column):
    """A list of `size` numbers. Null, alone or in a list, is missing: NaN, and 0 (the mean) in the tensor."""

    modality: ClassVar[bool] = True

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1, le=1 << 24, description="Numbers in a row.")

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is no list of `size` finite numbers."""
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        if not nested.is_list(values.type) or not nested.is_numeric(values.type):
            problem = f"are not lists of numbers but {values.type}"
            return [Finding(problem, "use a column of lists of numbers", np.flatnonzero(valid))] if valid.any() else []
        bad = nested.misshapen(values, [[self.size]])
        good = np.flatnonzero(valid & ~bad)
        rows = nested.stacked(values.take(pa.array(good)), self.size)
        over = good[(np.abs(rows) > _LARGEST).any(1)]
        found = []
        if bad.any():
            which = np.flatnonzero(bad)
            lengths = [f"of length {len(values[int(row)].as_py())}" for row in which[:5]] if values.type.num_fields == 1 else []
            found.append(Finding(f"are not lists of {self.size} numbers", "correct the rows, or the column's `size`", which, lengths))
        if len(over):
            found.append(Finding("hold infinite values, or some too large for float32", "leave them null, or rescale the column", over))
        return found

    def missing(self, values: pa.Array) -> np.ndarray:
        """Null, or null in every place."""
        return np.isnan(self._rows(values)).all(1)

    def observe(self, values: pa.Array, state: State) -> State:
        """Count, mean and squared deviation of each place."""
        return moments.add(state, self._rows(values))

    def finish(self, state: State) -> dict[str, Any]:
        """`mean` and `std` of each place over the training rows."""
        found: dict[str, list[Any]] = moments.summary(state) if state else {"mean": [None], "std": [None]}
        if all(mean is None for mean in found["mean"]):
            raise ValueError("has no value in the training rows")
        mean = [value or 0.0 for value in found["mean"]]
        return {"kind": self.kind, "shape": [self.size], "dtype": "float32", "mean": mean, "std": moments.scale(found["std"])}

    def expected(self) -> dict[str, Any]:
        """A vector of mean 0."""
        return {"kind": self.kind, "shape": [self.size], "dtype": "float32", "mean": [0.0] * self.size, "std": [1.0] * self.size}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows, size]` float32, NaN where missing."""
        return self._rows(values).astype(np.float32)

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B, size]` float32, standardised, 0 where missing."""
        import torch

        rows = torch.from_numpy(np.array(encoded, np.float32)).reshape(-1, self.size)
        return ((rows - torch.tensor(fitted["mean"])) / torch.tensor(fitted["std"])).nan_to_num_(0.0)

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Lists in the units of the source."""
        return (np.asarray(values, np.float64) * fitted["std"] + fitted["mean"]).tolist()

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Moments over all places together, and rows with some places missing."""
        rows = np.asarray(encoded, np.float64)
        gaps = np.isnan(rows)
        partial = int((gaps.any(1) & ~gaps.all(1)).sum())
        return {"all": moments.add(state.get("all", {}), rows.reshape(-1, 1)), "partial": state.get("partial", 0) + partial}

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`min`, `max`, `mean`, `std` over all places; `partial`: rows with a gap."""
        found = moments.summary(state["all"])
        extremes = {"min": found["low"][0], "max": found["high"][0], "mean": found["mean"][0], "std": found["std"][0]}
        return {**extremes, "partial": state["partial"]}

    def _rows(self, values: pa.Array) -> np.ndarray:
        out = np.full((len(values), self.size), np.nan)
        there = np.flatnonzero(values.is_valid())
        if len(there):
            out[there] = nested.stacked(values.take(pa.array(there)), self.size)
        return out
