"""scikit-learn's digits: 1,797 handwritten digits of 8x8 pixels.

Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files
from trainer.parts import ColumnField, Dataset

_NAMES = ["image", "digit", "parity", "ink"]
_COLUMNS: Any = {
    "image": {"kind": "image", "shape": [1, 8, 8], "range": [0, 16]},
    "digit": {"kind": "category", "classes": 10},
    "parity": {"kind": "category", "classes": ["even", "odd"]},
    "ink": {"kind": "number"},
}


class Digits(Dataset):
    """Columns `image`, `digit`, `parity` (even or odd) and `ink`, the ink on the paper in fully inked pixels."""

    kind: Literal["digits"] = "digits"
    columns: dict[str, ColumnField] = Field(_COLUMNS, description="Typed columns.", min_length=1)
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="First row and the one after the last, from 0: a part of the set. Default: all 1,797."
    )

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """One batch."""
        import numpy as np
        from sklearn.datasets import load_digits

        pixels, digit = load_digits(return_X_y=True)
        arrays = {
            "image": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1), pa.float32()), 64),
            "digit": pa.array(digit),
            "parity": pa.array(np.where(digit % 2, "odd", "even")),
            "ink": pa.array(pixels.sum(1) / 16),
        }
        files.require("digits", columns, _NAMES)
        first, after = self.rows or (0, len(digit))
        yield pa.record_batch([arrays[name] for name in columns], list(columns)).slice(first, max(0, after - first))

    def fingerprint(self) -> str:
        """What scikit-learn ships has never changed."""
        return "scikit-learn digits"

    def faults(self, place: str) -> list[Any]:
        """Columns that it does not have."""
        return files.unknown_columns(place, self, _NAMES)
