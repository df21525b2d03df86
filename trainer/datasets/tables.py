"""Parquet files in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from trainer.datasets import files
from trainer.errors import DataError

_REMEDY = "replace the file: it is damaged, or no Parquet file"


def read(path: Path, place: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of one file. Raises DataError."""
    import pyarrow.parquet as pq

    try:
        # a buffer, so that a row group is read in pieces and not at once
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            files.require(place, columns, file.schema_arrow.names)
            wanted = list(dict.fromkeys(columns))
            # how large rows are is only known once they are decoded
            first = next(file.iter_batches(batch_size=64, columns=wanted), None)
            size = max(1, first.nbytes // max(1, len(first))) if first is not None else 1
            rows = max(1, min(files.BATCH_ROWS, files.BATCH_BYTES // size))
            for batch in file.iter_batches(batch_size=rows, columns=wanted):
                yield batch.select(list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError.at(place, f"can't be read: {str(error).splitlines()[0]}", _REMEDY) from error


def names(path: Path) -> list[str]:
    """Columns of a Parquet file. Raises DataError."""
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError.at(str(path), f"can't be read: {str(error).splitlines()[0]}", _REMEDY) from error
