"""Scenes composed of scikit-learn's digits: real handwriting, put on a page by us, so that every box is known exactly.

Source of the digits: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from trainer.datasets import files
from trainer.parts import ColumnField, Dataset

_SIDE = 48
_MOST = 4
_SIDES = (12, 14, 16, 18, 20, 22)
_INK = 64  # of 255: fainter is the blur of enlarging
_TRIES = 30
_BATCH = 256
_NAMES = ["image", "boxes", "count", "largest", "writing"]
_COLUMNS: Any = {
    "image": {"kind": "image", "shape": [1, _SIDE, _SIDE]},
    "boxes": {"kind": "boxes", "classes": 10, "size": [_SIDE, _SIDE], "most": _MOST},
    "count": {"kind": "category", "classes": list(range(1, _MOST + 1))},
    "largest": {"kind": "category", "classes": 10},
}


class DigitScenes(Dataset):
    """Pages of 48x48 pixels with 1 to 4 digits of different sizes that don't touch, made anew from the seed.

    Columns `image`; `boxes` around the ink of each digit; `count`, how many there are; `largest`, which digit is written largest; and
    `writing`, the part of the 1,797 digits that all digits of a scene are from. It is the key, so no handwriting of a training
    scene is seen again in a test scene.
    """

    kind: Literal["digit_scenes"] = "digit_scenes"
    columns: dict[str, ColumnField] = Field(_COLUMNS, description="Typed columns.", min_length=1)
    key: str | list[str] | None = Field("writing", description="Source column(s) that identify a row for the split.")
    scenes: int = Field(2000, ge=1, le=1_000_000, description="How many scenes.")
    writings: int = Field(100, ge=2, le=400, description="Parts that the digits are divided into. A scene uses digits of one.")
    seed: int = Field(0, ge=0, lt=2**31, description="Change it to get other scenes.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Scenes, each a pure function of the seed and its number."""
        from sklearn.datasets import load_digits

        files.require("digit_scenes", columns, _NAMES)
        images, labels = load_digits(return_X_y=True)
        images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        dealt = np.random.default_rng(0).permutation(len(images))
        for start in range(0, self.scenes, _BATCH):
            made = []
            for scene in range(start, min(start + _BATCH, self.scenes)):
                writing = scene % self.writings
                made.append(_compose(images, labels, dealt[writing :: self.writings], np.random.default_rng([self.seed, scene])))
                made[-1]["writing"] = writing
            pixels = pa.array(np.stack([scene["image"] for scene in made]).reshape(-1))
            things = pa.list_(pa.struct({"box": pa.list_(pa.float64()), "label": pa.int64()}))
            arrays = {
                "image": pa.FixedSizeListArray.from_arrays(pixels, _SIDE * _SIDE),
                "boxes": pa.array([scene["boxes"] for scene in made], things),
                **{name: pa.array([scene[name] for scene in made], pa.int64()) for name in ("count", "largest", "writing")},
            }
            yield pa.record_batch([arrays[name] for name in columns], list(columns))

    def fingerprint(self) -> str:
        """The digits never change, and how scenes are made of them is counted here."""
        return "digit scenes 1"

    def faults(self, place: str) -> list[Any]:
        """Columns that it does not have."""
        return files.unknown_columns(place, self, _NAMES)


def _compose(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """One scene of some of these digits."""
    from PIL import Image

    page = np.zeros((_SIDE, _SIDE), np.uint8)
    taken = np.zeros((_SIDE, _SIDE), bool)
    wanted = min(int(rng.integers(1, _MOST + 1)), len(rows))
    # the largest first: it is the hardest to find room for
    sides = np.sort(rng.choice(_SIDES, wanted, replace=False))[::-1]
    boxes: list[dict[str, Any]] = []
    for row, side in zip(rng.choice(rows, wanted, replace=False), sides.tolist(), strict=True):
        digit = np.asarray(Image.fromarray(images[row]).resize((side, side), Image.Resampling.BICUBIC))
        ink = np.argwhere(digit >= _INK)
        (top, left), (bottom, right) = ink.min(0), ink.max(0) + 1
        digit = np.where(digit >= _INK, digit, 0)[top:bottom, left:right]
        height, width = digit.shape
        for _ in range(_TRIES):
            y, x = int(rng.integers(0, _SIDE - height + 1)), int(rng.integers(0, _SIDE - width + 1))
            # a pixel between two, so that they don't touch
            if not taken[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1].any():
                page[y : y + height, x : x + width] = digit
                taken[y : y + height, x : x + width] = True
                boxes.append({"box": [x, y, x + width, y + height], "label": int(labels[row])})
                break
    largest = boxes[0]["label"]
    rng.shuffle(boxes)  # type: ignore[arg-type]
    return {"image": page, "boxes": boxes, "count": len(boxes), "largest": largest}
