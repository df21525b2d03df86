"""A quantity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from trainer.columns import moments
from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from torch import Tensor

_NUMBER = r"^\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)\s*$"
_LARGEST = float(np.finfo(np.float32).max)


class Number(Column):
    """A quantity. Stored in the units of the source; the tensor has mean 0 and deviation 1 over the training rows."""

    kind: Literal["number"] = "number"
    standardise: bool = Field(True, description="Subtract the mean of the training rows and divide by their standard deviation.")
    minimum: float | None = Field(None, description="Values below are faults.")
    maximum: float | None = Field(None, description="Values above are faults.")

    @model_validator(mode="after")
    def _ordered(self) -> Number:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is no number, not finite, or outside the range."""
        number, strange = numbers(values)
        over = np.isinf(number) | (np.abs(number) > _LARGEST)
        low = np.zeros_like(over) if self.minimum is None else ~over & (number < self.minimum)
        high = np.zeros_like(over) if self.maximum is None else ~over & (number > self.maximum)
        widen = "correct the rows, or widen the range in the spec"
        table = [
            (strange, "are not numbers", "correct the rows, or make it `kind: category`"),
            (over, "are infinite, or too large for float32", "leave them empty, or rescale the column"),
            (low, f"are below the minimum {self.minimum}", widen),
            (high, f"are above the maximum {self.maximum}", widen),
        ]
        return [Finding(problem, remedy, np.flatnonzero(mask)) for mask, problem, remedy in table if mask.any()]

    def missing(self, values: pa.Array) -> np.ndarray:
        """Null and NaN."""
        number, strange = numbers(values)
        return np.isnan(number) & ~strange

    def observe(self, values: pa.Array, state: State) -> State:
        """Count, mean and squared deviation."""
        return moments.add(state, numbers(values)[0][:, None])

    def finish(self, state: State) -> dict[str, Any]:
        """`mean` and `std` over the training rows."""
        found: dict[str, list[Any]] = moments.summary(state) if state else {"mean": [None], "std": [None]}
        if found["mean"][0] is None:
            raise ValueError("has no value in the training rows")
        mean, std = (found["mean"][0], moments.scale(found["std"])[0]) if self.standardise else (0.0, 1.0)
        return {"kind": self.kind, "shape": [], "dtype": "float32", "mean": mean, "std": std}

    def expected(self) -> dict[str, Any]:
        """A number of mean 0."""
        return {"kind": self.kind, "shape": [], "dtype": "float32", "mean": 0.0, "std": 1.0}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows]` float32, NaN where missing. Raises ValueError for what is no number."""
        number, strange = numbers(values)
        if strange.any():
            raise ValueError(f"{values[int(np.argmax(strange))].as_py()!r} is not a number")
        with np.errstate(over="ignore"):
            return number.astype(np.float32)

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B]` float32, standardised, NaN where missing."""
        import torch

        return torch.from_numpy(((np.asarray(encoded, np.float64) - fitted["mean"]) / fitted["std"]).astype(np.float32))

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Standardised numbers in the units of the source; None for NaN."""
        number = np.asarray(values, np.float64) * fitted["std"] + fitted["mean"]
        return [None if value != value else value for value in number.tolist()]

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Moments and extremes."""
        return moments.add(state, np.asarray(encoded, np.float64)[:, None])

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`min`, `max`, `mean`, `std`, in the units of the source; None where all is missing."""
        found = moments.summary(state)
        return {"min": found["low"][0], "max": found["high"][0], "mean": found["mean"][0], "std": found["std"][0]}


def numbers(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64 with NaN for missing, and which of them are no numbers (NaN too). Text that reads as a number is one."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    strange = np.zeros(len(values), bool)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = pc.utf8_trim_whitespace(values)
        empty = pc.equal(text, "").fill_null(True)
        fits = pc.match_substring_regex(text, _NUMBER, ignore_case=True).fill_null(True)
        strange = pc.invert(pc.or_(empty, fits)).to_numpy(zero_copy_only=False)
        text = pc.utf8_ltrim(text, characters="+")  # which the cast does not take
        values = pc.if_else(pc.and_(fits, pc.invert(empty)), text, None).cast(pa.float64())
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        values = values.cast(pa.float64(), safe=False)
    elif not pa.types.is_null(kind):
        strange = values.is_valid().to_numpy(zero_copy_only=False)
        return np.full(len(values), np.nan), strange
    else:
        values = values.cast(pa.float64())
    return values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False), strange
