"""Composed pictures of two real digits, each with a caption, and questions with answers.

The handwriting is real (scikit-learn's digits); which two stand side by side, the captions, questions and answers are composed by rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files
from trainer.parts import ColumnField, Dataset

_NAMES = ["image", "caption", "question", "answer", "sum", "group"]
_COLUMNS: Any = {
    "image": {"kind": "image", "shape": [1, 8, 16], "range": [0, 16]},
    "caption": {"kind": "text", "max_tokens": 16, "vocab_size": 320},
    "question": {"kind": "text", "max_tokens": 16, "vocab_size": 320},
    "answer": {"kind": "category"},
    "sum": {"kind": "number"},
}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CAPTIONS = ("a {a} left of a {b}", "a {b} right of a {a}", "{a} and then {b}", "the digits {a} and {b}")


class CaptionedDigits(Dataset):
    """Columns `image` (two digits side by side), `caption`, `question`, `answer` (category) and `sum` of the two digits.

    Three handwritten digits make six pictures, a `group`. Groups are split as a whole: test pictures are of handwriting never trained on.
    `missing` empties that share of the images and, independently, of the captions.
    """

    kind: Literal["captioned_digits"] = "captioned_digits"
    columns: dict[str, ColumnField] = Field(_COLUMNS, description="Typed columns.", min_length=1)
    key: str | list[str] | None = Field(
        "group", description="Source column(s) that identify a row for the split. Rows with one key stay together."
    )
    missing: float = Field(0.0, ge=0, lt=1, description="Share of images, and of captions, that are missing.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """One batch of 3,594 rows."""
        import numpy as np
        from sklearn.datasets import load_digits

        files.require("captioned_digits", columns, _NAMES)
        rng = np.random.default_rng(0)
        pixels, digit = load_digits(return_X_y=True)
        three = rng.permutation(len(digit))[: len(digit) // 3 * 3].reshape(-1, 3)
        order = three[:, list(permutations(range(3), 2))].reshape(-1, 2)
        pictures = pixels[order].reshape(-1, 2, 8, 8).transpose(0, 2, 1, 3).reshape(len(order), -1)
        first, second = digit[order].T
        captions = [
            _CAPTIONS[k].format(a=_WORDS[a], b=_WORDS[b])
            for a, b, k in zip(first, second, rng.integers(0, len(_CAPTIONS), len(order)), strict=True)
        ]
        questions, answers = zip(
            *(_ask(int(k), int(a), int(b)) for a, b, k in zip(first, second, rng.integers(0, 4, len(order)), strict=True)), strict=True
        )
        gone = rng.random((2, len(order))) < self.missing
        arrays = {
            "image": pa.array([None if g else row for row, g in zip(pictures.tolist(), gone[0], strict=True)], pa.list_(pa.float32(), 128)),
            "caption": pa.array(captions, mask=gone[1]),
            "question": pa.array(questions),
            "answer": pa.array(answers),
            "sum": pa.array((first + second).astype(float)),
            "group": pa.array(np.repeat(np.arange(len(three)), len(order) // len(three))),
        }
        yield pa.record_batch([arrays[name] for name in columns], list(columns))

    def fingerprint(self) -> str:
        """What scikit-learn ships has never changed; what is composed of it is a function of this code."""
        return "captioned digits 1"

    def faults(self, place: str) -> list[Any]:
        """Columns that it does not have."""
        return files.unknown_columns(place, self, _NAMES)


def _ask(kind: int, a: int, b: int) -> tuple[str, str]:
    if kind == 0:
        return "which digit is on the left?", _WORDS[a]
    if kind == 1:
        return "which digit is on the right?", _WORDS[b]
    if kind == 2:
        return "is the left digit larger?", "yes" if a > b else "no"
    return "are both digits even?", "yes" if a % 2 == b % 2 == 0 else "no"
