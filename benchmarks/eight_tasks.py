"""The digits with eight tasks that are hard to balance: losses of very different size, few labels, wrong labels, two tasks at odds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

LABELLED, WRONG = 0.1, 0.5

COLUMNS: dict[str, Any] = {
    "image": {"kind": "image", "shape": [1, 8, 8], "range": [0, 16]},
    "digit": {"kind": "category", "classes": 10},
    "parity": {"kind": "category", "classes": 2},
    "loop": {"kind": "category", "classes": 2},
    "ink": {"kind": "number", "standardise": False},
    "centre": {"kind": "number", "standardise": False},
    "rare": {"kind": "category", "classes": 2},
    "noisy": {"kind": "category", "classes": 10},
    "opposed": {"kind": "category", "classes": 2},
}
"""Their losses begin at about 2.3, 0.7, 0.7, 380, 0.2, 0.7, 2.3 and 0.7; that of `centre` can fall to a thousandth."""


def rows() -> Iterator[dict[str, Any]]:
    """1,797 handwritten digits.

    `digit`; `parity`; `loop`, whether it has a closed loop (0, 6, 8, 9); `ink` in fully inked pixels; `centre`, the row of the
    centre of the ink as a share of the height; `rare`, whether it is above 4, known for a tenth of the rows; `noisy`, the digit,
    drawn at random in half of the rows; `opposed`, the parity, turned round where there is more ink than usual.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    ink = pixels.sum(1) / 16
    centre = (pixels.reshape(-1, 8, 8).sum(2) @ np.arange(8)) / pixels.sum(1) / 8
    heavy = ink > np.median(ink)
    rng = np.random.default_rng(0)
    known, wrong, drawn = rng.random(len(digits)) < LABELLED, rng.random(len(digits)) < WRONG, rng.integers(0, 10, len(digits))
    for i, digit in enumerate(digits.tolist()):
        yield {
            "image": pixels[i].astype(np.float32),
            "digit": digit,
            "parity": digit % 2,
            "loop": int(digit in (0, 6, 8, 9)),
            "ink": float(ink[i]),
            "centre": float(centre[i]),
            "rare": int(digit > 4) if known[i] else None,
            "noisy": int(drawn[i]) if wrong[i] else digit,
            "opposed": (digit + int(heavy[i])) % 2,
        }
