"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files, tables
from trainer.parts import Dataset

_SUFFIXES = (".parquet", ".parquet.brotli", ".parquet.gzip", ".parquet.snappy", ".parquet.zstd", ".pq")


class Parquet(Dataset):
    """Rows of a Parquet file, or of all below a folder, in the order of their names."""

    kind: Literal["parquet"] = "parquet"
    uri: str = Field(min_length=1, description="A path, `file://` or `s3://`: a file, or a folder of files.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches of some megabytes. Raises DataError for a damaged file."""
        for source in files.sources(self.uri, _SUFFIXES):
            with source.local() as path:
                yield from tables.read(path, source.name, columns)

    def fingerprint(self) -> str:
        """A digest of names and contents."""
        return files.fingerprint(self.uri, _SUFFIXES)

    def faults(self, place: str) -> list[Any]:
        """No such file; columns that its schema lacks."""
        return files.faults(place, self, self.uri, _SUFFIXES, tables.names)
