"""Lists in lists of numbers, checked for shape and taken out as one array without a Python loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list(kind: pa.DataType) -> bool:
    """Whether Arrow holds lists of any sort in this type."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def leaf_type(kind: pa.DataType) -> pa.DataType:
    """What the innermost lists hold."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def is_numeric(kind: pa.DataType) -> bool:
    """Whether lists of this type end in numbers (or in nothing, which may become some)."""
    leaf = leaf_type(kind)
    return pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf) or pa.types.is_null(leaf)


def misshapen(values: pa.Array, shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """`[rows]` bool: which lists have none of these shapes. Null rows are not misshapen; null inside is."""
    depth = 0
    kind = values.type
    while is_list(kind):
        depth, kind = depth + 1, kind.value_type
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    shape = next((shape for shape in shapes if len(shape) == depth), None)
    if shape is None:
        return valid
    bad = np.zeros(len(values), bool)
    row = np.arange(len(values))  # which row an element at this depth belongs to
    for size in shape:
        length = pc.list_value_length(values).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        bad[row[length != size]] = True
        row, values = np.repeat(row, np.maximum(length, 0)), values.flatten()
    return bad & valid


def stacked(values: pa.Array, size: int) -> np.ndarray:
    """Well-shaped, non-null lists as `[rows, size]` of the type they are held in, NaN for null leaves."""
    rows = len(values)
    while is_list(values.type):
        values = values.flatten()
    if pa.types.is_null(values.type) or pa.types.is_boolean(values.type):
        values = values.cast(pa.float32())
    return values.to_numpy(zero_copy_only=False).reshape(rows, size)
