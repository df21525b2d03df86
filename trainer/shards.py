"""Prepared rows by number: memory-mapped, copied once.

A shard is an Arrow IPC file of one record batch, so that a column of it is one numpy view of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.errors import StoreError

_OPEN = 4096  # shards of a column kept mapped: Linux gives a process 65,530 mappings
_WHOLE_BYTES = 16 << 20


class ShardWriter:
    """Writes encoded rows of one split as shards.

    Args:
        folder: where shards go, as `<split>-00000.arrow` and on.
        split: first part of their names.
        fitted: `shape` and `dtype` of each column.
        shard_bytes: size at which a shard is closed; it always holds a row.
    """

    def __init__(self, folder: Path, split: str, fitted: Mapping[str, Mapping[str, Any]], shard_bytes: int) -> None:
        self.paths: list[str] = []
        self.rows = 0
        self._folder, self._split = folder, split
        width = {name: int(np.prod(entry["shape"])) for name, entry in fitted.items()}
        self.row_bytes = sum(width[name] * np.dtype(entry["dtype"]).itemsize for name, entry in fitted.items())
        self._size = max(1, shard_bytes // self.row_bytes)
        self._shard_rows = 0
        # filled again and again: a shard is never held twice
        self._buffers = {name: np.empty((self._size, *entry["shape"]), entry["dtype"]) for name, entry in fitted.items()}

    def add(self, encoded: Mapping[str, np.ndarray]) -> None:
        """Add rows, given for every column."""
        rows = len(next(iter(encoded.values())))
        start = 0
        while start < rows:
            take = min(rows - start, self._size - self._shard_rows)
            for name, values in encoded.items():
                self._buffers[name][self._shard_rows : self._shard_rows + take] = values[start : start + take]
            self._shard_rows += take
            start += take
            if self._shard_rows == self._size:
                self._close_shard()
        self.rows += rows

    def close(self) -> None:
        """Write what is left."""
        if self._shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        arrays = []
        for values in self._buffers.values():
            flat = pa.array(values[: self._shard_rows].reshape(-1))
            arrays.append(flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:]))))
        name = f"{self._split}-{len(self.paths):05d}.arrow"
        write_batch(self._folder / name, pa.record_batch(arrays, [*self._buffers]))
        self.paths.append(name)
        self._shard_rows = 0


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """An Arrow IPC file of one record batch."""
    with pa.ipc.new_file(str(path), batch.schema) as file:
        file.write_batch(batch)


def read_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a shard, memory-mapped. Raises StoreError where the file is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except FileNotFoundError:
        raise StoreError.at(str(path), "this shard is missing", f"remove {path.parent} and run again") from None
    except (OSError, pa.ArrowInvalid, IndexError) as error:
        raise StoreError.at(str(path), f"this shard can't be read: {error}", f"remove {path.parent} and run again") from None


class Split:
    """Rows of one split of a prepared dataset, by number.

    Args:
        folder: of the result, with its shards and `fitted.json`.
        manifest: of the result.
        split: train, valid, test, or raw-test for the test rows as they were in the source.

    Raises:
        StoreError: when a shard is missing, damaged, or not what the manifest says.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], split: str) -> None:
        self.split = split
        self._folder = Path(folder)
        self._paths: list[str] = list(manifest["shards"].get(split, []))
        self._rows = int(manifest["rows"].get(split.removeprefix("raw-"), 0))
        fitted = json.loads((self._folder / "fitted.json").read_text())
        self._shapes = {name: entry["shape"] for name, entry in fitted.items()}
        self._dtypes = {name: entry["dtype"] for name, entry in fitted.items()}
        self._wholes: dict[str, np.ndarray | None] = {}
        self._pieces: dict[str, _Pieces] = {}
        # every shard but the last is full
        self._shard_rows = len(read_batch(self._folder / self._paths[0])) if self._paths else 0
        full = self._shard_rows * (len(self._paths) - 1)
        if not split.startswith("raw-") and not full <= self._rows <= full + self._shard_rows:
            place = str(self._folder)
            raise StoreError.at(place, f"{self._rows} rows of {split} don't fit {len(self._paths)} shards", f"remove {place} and run again")

    def __len__(self) -> int:
        return self._rows

    def gather(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Encoded values `[len(rows), *shape]` of the rows with these numbers, in this order, as a copy.

        Args:
            column: name of the column.
            rows: int64, from 0 up to `len(self)`.
        """
        if not self._paths:
            return self._nothing(column, rows)
        whole = self._wholes[column] if column in self._wholes else self._whole(column)
        if whole is not None:
            return np.take(whole, rows, axis=0)
        # rows of a batch are spread thinly over shards: a slice each costs less than numpy's set-up per shard
        pieces = self._pieces[column]
        shard, inside = np.divmod(rows, self._shard_rows)
        starts = inside * pieces.width
        ends = starts + pieces.width
        data = bytearray().join(
            [pieces[n][start:end] for n, start, end in zip(shard.tolist(), starts.tolist(), ends.tolist(), strict=True)]
        )
        if len(data) != len(rows) * pieces.width:
            raise IndexError(f"row {int(rows.max())} of {self._rows}")
        return np.frombuffer(data, pieces.dtype).reshape(len(rows), *self._shapes[column])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The shards in order, as record batches: raw rows of `raw-test`, encoded ones of the others."""
        for path in self._paths:
            yield read_batch(self._folder / path)

    def _nothing(self, column: str, rows: np.ndarray) -> np.ndarray:
        if len(rows):
            raise IndexError(f"row {int(rows[0])} of none")
        return np.empty((0, *self._shapes[column]), self._dtypes[column])

    def _whole(self, column: str) -> np.ndarray | None:
        """A column as one array: of the only shard, or copied where it is small (labels, mostly). None otherwise."""
        first = self._view(0, column)
        small = first[:1].nbytes * self._rows <= _WHOLE_BYTES and len(self._paths) <= _OPEN
        whole = None
        if len(self._paths) == 1:
            whole = first
        elif small:
            whole = np.concatenate([self._view(shard, column) for shard in range(len(self._paths))])
        else:
            self._pieces[column] = _Pieces(self, column, first)
        self._wholes[column] = whole
        return whole

    def _view(self, shard: int, column: str) -> np.ndarray:
        values = read_batch(self._folder / self._paths[shard])[column]
        flat = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
        return flat.to_numpy(zero_copy_only=True).reshape(len(values), *self._shapes[column])


class _Pieces(dict[int, memoryview]):
    """The bytes of one column by shard, mapped when first asked for."""

    def __init__(self, split: Split, column: str, first: np.ndarray) -> None:
        self.width, self.dtype = first[:1].nbytes, first.dtype
        self._split, self._column = split, column

    def __missing__(self, shard: int) -> memoryview:
        if not 0 <= shard < len(self._split._paths):
            raise IndexError(f"shard {shard} of {len(self._split._paths)}")
        if len(self) >= _OPEN:
            self.clear()
        self[shard] = self._split._view(shard, self._column).reshape(-1).data.cast("B")
        return self[shard]
