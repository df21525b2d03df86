"""Boxes around the things in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from trainer.columns import nested
from trainer.parts import Column, Finding, State

if TYPE_CHECKING:
    from torch import Tensor

_SLACK = 1e-6


class Boxes(Column):
    """A list of `{box: [left, top, right, bottom], label: ...}`, of any length up to `most`; empty where nothing is to be seen.

    Stored as `[most, 5]`: the box in shares of the picture's width and height, then the position of its label in `classes`; 0, 0, 0, 0, -1
    where there are no more. Null is missing, NaN: nobody looked.
    """

    kind: Literal["boxes"] = "boxes"
    classes: list[bool | int | str] | Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="The labels, or how many (0 to n - 1); others are faults."
    )
    size: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = Field(
        description="[height, width] of the pictures that boxes are in; [1, 1] where they are given in shares of it."
    )
    most: int = Field(32, ge=1, le=1000, description="Boxes in a row at most.")

    @field_validator("classes")
    @classmethod
    def _unique(cls, classes: Any) -> Any:
        if isinstance(classes, list):
            names = [_written(label) for label in classes]
            if not names or len(names) > len(set(names)):
                raise ValueError("a label is listed twice" if names else "no label is listed")
        return classes

    def checks(self, values: pa.Array) -> list[Finding]:
        """What is no list of boxes inside the picture, or has a label that is not declared, or too many."""
        rows = np.flatnonzero(values.is_valid())
        if not len(rows) or pa.types.is_null(nested.leaf_type(values.type)):
            return [] if not len(rows) or _depth(values.type) == 1 else [self._strange(values, rows)]
        if _depth(values.type) != 1 or not _is_box(values.type.value_type):
            return [self._strange(values, rows)]
        length = pc.list_value_length(values.take(pa.array(rows))).to_numpy(zero_copy_only=False)
        row, things = np.repeat(rows, length), values.flatten()
        box, label = _field(things, "box"), self._positions(_field(things, "label"))
        right = self._right(box)
        edges = f"0 <= left < right <= {self.size[1]:g} and 0 <= top < bottom <= {self.size[0]:g}"
        some = ", ".join(map(_written, self._declared()[:10])) + (", ..." if len(self._declared()) > 10 else "")
        table = [
            (rows[length > self.most], f"have more than {self.most} boxes", "raise the column's `most`"),
            (
                np.unique(row[~right]),
                f"have a box that is not [left, top, right, bottom] with {edges}",
                "correct the rows, or the column's `size`",
            ),
            (np.unique(row[label < 0]), f"have a label that is none of {some}", "correct the rows, or add the label to `classes`"),
        ]
        return [Finding(problem, remedy, which) for which, problem, remedy in table if len(which)]

    def observe(self, values: pa.Array, state: State) -> State:
        """Rows that were looked at."""
        return {"rows": state.get("rows", 0) + len(values) - values.null_count}

    def finish(self, state: State) -> dict[str, Any]:
        """`classes`, and `size` of the pictures."""
        if not state.get("rows"):
            raise ValueError("has no list of boxes in the training rows")
        return self.expected()

    def expected(self) -> dict[str, Any]:
        """All of it: rows add nothing."""
        return {"kind": self.kind, "shape": [self.most, 5], "dtype": "float32", "classes": self._declared(), "size": list(self.size)}

    def encode(self, values: pa.Array, fitted: Mapping[str, Any]) -> np.ndarray:
        """`[rows, most, 5]` float32."""
        out = np.zeros((len(values), self.most, 5), np.float32)
        out[..., 4] = -1
        there = np.flatnonzero(values.is_valid())
        out[np.setdiff1d(np.arange(len(values)), there)] = np.nan
        if not len(there) or not _is_box(values.type.value_type):
            return out
        length = pc.list_value_length(values.take(pa.array(there))).to_numpy(zero_copy_only=False)
        row = np.repeat(there, length)
        place = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
        things = values.flatten()
        height, width = self.size
        if len(row):
            out[row, place, :4] = nested.stacked(_field(things, "box"), 4).astype(np.float64) / [width, height, width, height]
            out[row, place, 4] = self._positions(_field(things, "label"))
        return out

    def tensor(self, encoded: np.ndarray, fitted: Mapping[str, Any]) -> Tensor:
        """`[B, most, 5]` float32."""
        import torch

        return torch.from_numpy(np.array(encoded, np.float32)).reshape(-1, *fitted["shape"])

    def decode(self, values: np.ndarray, fitted: Mapping[str, Any]) -> list[Any]:
        """Lists of boxes in the units of the source; None where missing."""
        height, width = fitted["size"]
        found: list[Any] = []
        for row in np.asarray(values, np.float64):
            there = row[row[:, 4] >= 0]
            boxes = (there[:, :4] * [width, height, width, height]).tolist()
            labels = [fitted["classes"][int(k)] for k in there[:, 4]]
            things = [{"box": box, "label": label} for box, label in zip(boxes, labels, strict=True)]
            found.append(None if np.isnan(row[0, 4]) else things)
        return found

    def tally(self, values: pa.Array, encoded: np.ndarray, fitted: Mapping[str, Any], state: State) -> State:
        """Boxes by class, rows by their number of boxes, and the sum of the boxes' areas."""
        there = encoded[..., 4] >= 0
        classes = np.bincount(encoded[..., 4][there].astype(int), minlength=len(fitted["classes"]))
        numbers = np.bincount(there.sum(1)[~np.isnan(encoded[:, 0, 4])], minlength=self.most + 1)
        sides = encoded[..., 2:4][there] - encoded[..., :2][there]
        return {
            "classes": (classes + np.asarray(state.get("classes", 0))).tolist(),
            "numbers": (numbers + np.asarray(state.get("numbers", 0))).tolist(),
            "area": state.get("area", 0.0) + float(sides.prod(1, dtype=np.float64).sum()),
        }

    def describe(self, state: State, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """`balance`: boxes per class; `boxes`: how many, rows with none, the most in a row; `area`: mean share of the picture."""
        total = sum(state["classes"])
        most = max((n for n, rows in enumerate(state["numbers"]) if rows), default=0)
        return {
            "balance": {_written(label): n for label, n in zip(fitted["classes"], state["classes"], strict=True)},
            "boxes": {"boxes": total, "empty": state["numbers"][0], "most": most},
            "area": state["area"] / total if total else None,
        }

    def _strange(self, values: pa.Array, rows: np.ndarray) -> Finding:
        return Finding(f"are not lists of boxes but {values.type}", "use lists of {box: [left, top, right, bottom], label: ...}", rows)

    def _declared(self) -> list[Any]:
        return list(range(self.classes)) if isinstance(self.classes, int) else list(self.classes)

    def _positions(self, labels: pa.Array) -> np.ndarray:
        """Positions of labels in `classes`; -1 where there is none. Compared by how they are written, as categories are."""
        if pa.types.is_floating(labels.type):
            labels = _whole(labels)
        known = pa.array([_written(label) for label in self._declared()], pa.string())
        index = pc.index_in(labels.cast(pa.string()), value_set=known, skip_nulls=True)
        return index.fill_null(-1).to_numpy(zero_copy_only=False)

    def _right(self, box: pa.Array) -> np.ndarray:
        """Which of these lists are boxes inside the picture."""
        right = box.is_valid().to_numpy(zero_copy_only=False) & ~nested.misshapen(box, [[4]])
        which = np.flatnonzero(right)
        height, width = self.size
        edge = nested.stacked(box.take(pa.array(which)), 4).astype(np.float64)
        left, top, far, bottom = edge.T
        slack_x, slack_y = _SLACK * width, _SLACK * height
        # so that NaN is wrong
        right[which] = (left >= -slack_x) & (left < far) & (far <= width + slack_x)
        right[which] &= (top >= -slack_y) & (top < bottom) & (bottom <= height + slack_y)
        return right


def _written(label: bool | int | str) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _whole(labels: pa.Array) -> pa.Array:
    try:
        return labels.cast(pa.int64())
    except pa.ArrowInvalid:
        return labels


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while nested.is_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth


def _is_box(kind: pa.DataType) -> bool:
    """Whether this is a struct of a list of numbers and a label."""
    if not pa.types.is_struct(kind) or min(kind.get_field_index("box"), kind.get_field_index("label")) < 0:
        return False
    box, label = kind.field("box").type, kind.field("label").type
    return nested.is_list(box) and nested.is_numeric(box) and not pa.types.is_nested(label) and not pa.types.is_binary(label)


def _field(things: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(things, name)
