"""Rows of the sizes that the benchmarks need, made up: how fast a loop is does not depend on what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_WORDS = 2000


def pictures(rows: int) -> Iterator[dict[str, Any]]:
    """Grey images of 28 x 28 with one of 10 classes, and whether that is even."""
    random = np.random.default_rng(0)
    for _ in range(rows):
        label = int(random.integers(10))
        yield {"image": random.integers(0, 256, 784, dtype=np.uint8), "label": label, "even": label % 2}


def texts(rows: int) -> Iterator[dict[str, Any]]:
    """Texts of 30 to 60 made-up words with a class of 5 and a class of 2."""
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 8))) for _ in range(_WORDS)])
    for _ in range(rows):
        label = int(random.integers(5))
        yield {"text": " ".join(random.choice(words, random.integers(30, 60))), "rating": label, "good": int(label > 2)}
