"""Digests of rows that depend on their values alone: not on the batch, the file format, the platform or the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EXACT = 1 << 53  # whole numbers below are the same number as a float64


def digests(columns: Sequence[pa.Array], key: bytes = b"") -> np.ndarray:
    """128-bit keyed BLAKE2 digests of rows, as uint64 `[rows, 2]`.

    Equal values have equal digests: 1 and 1.0, whatever their width; text whether dictionary-encoded
    or not; lists by what they hold. Null differs from every value.

    Args:
        columns: arrays of the same length; their order counts.
        key: at most 64 bytes.
    """
    rows = len(columns[0])
    parts = [row_bytes(column) for column in columns]
    whole = b"".join(blake2b(b"".join(row), digest_size=16, key=key).digest() for row in zip(*parts, strict=True))
    return np.frombuffer(whole, "<u8").reshape(rows, 2).astype(np.uint64)


def uniform(digest: np.ndarray) -> np.ndarray:
    """The first half of digests as float64 in [0, 1)."""
    return (digest[:, 0] >> np.uint64(11)).astype(np.float64) / 2**53


def row_bytes(values: pa.Array) -> list[bytes]:
    """An unambiguous encoding of each value: a tag, then its bytes, then their number."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return row_bytes(values.dictionary_decode())
    if pa.types.is_null(kind):
        return [b"0"] * len(values)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        out = _numbers(values)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        plain = values.cast(pa.large_binary())
        out = [b"s%b%d." % (value, len(value)) if value is not None else b"0" for value in plain.to_pylist()]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        out = _lists(values)
    elif pa.types.is_nested(kind):
        out = [b"j%b." % json.dumps(value, sort_keys=True, default=str).encode() for value in values.to_pylist()]
    else:
        return row_bytes(values.cast(pa.string()))
    if values.null_count:
        for row in np.flatnonzero(values.is_null()).tolist():
            out[row] = b"0"
    return out


def _numbers(values: pa.Array) -> list[bytes]:
    """Numbers as the eight bytes of a float64 where that is exact, else of an int64."""
    if pa.types.is_floating(values.type):
        number = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 is 0.0
        wide = None
    else:
        whole = pc.fill_null(values, False if pa.types.is_boolean(values.type) else 0).cast(pa.int64(), safe=False)
        wide = whole.to_numpy(zero_copy_only=False)
        number = wide.astype(np.float64)
    flat = np.where(np.isnan(number), np.nan, number).astype("<f8").tobytes()
    out = [b"n" + flat[start : start + 8] for start in range(0, len(flat), 8)]
    if wide is not None:
        for row in np.flatnonzero((wide > _EXACT) | (wide < -_EXACT)).tolist():
            out[row] = b"i" + int(wide[row]).to_bytes(8, "little", signed=True)
    return out


def _lists(values: pa.Array) -> list[bytes]:
    """Lists of numbers as their bytes in one piece, other lists item by item."""
    length = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(length)
    leaves = values.flatten()
    starts, stops, sizes = (ends - length).tolist(), ends.tolist(), length.tolist()
    kind = leaves.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        items = row_bytes(leaves)
        return [b"L%b%d." % (b"".join(items[a:b]), n) for a, b, n in zip(starts, stops, sizes, strict=True)]
    number = pc.fill_null(leaves.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False) + 0.0
    flat = np.where(np.isnan(number), np.nan, number).astype("<f8").tobytes()
    out = [b"L%b%d." % (flat[8 * a : 8 * b], n) for a, b, n in zip(starts, stops, sizes, strict=True)]
    if leaves.null_count:
        gap = leaves.is_null().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(values)), length)
        for index in np.unique(row[gap]).tolist():
            out[index] = b"M%b" % gap[starts[index] : stops[index]].tobytes() + out[index]
    return out
