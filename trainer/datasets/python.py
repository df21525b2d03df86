"""Rows of a function of the user's own: `kind: package.module:function`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from trainer.catalog import load
from trainer.datasets import files
from trainer.errors import DataError, UserError
from trainer.parts import Dataset
from trainer.sources import source_digest

_ROWS = 1024


class PythonDataset(Dataset):
    """Calls `function(**args)`, which yields rows as dicts or `pyarrow.RecordBatch`, the same in the same order every time."""

    kind: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`package.module:function`.")
    args: dict[str, Any] = Field({}, description="Keyword arguments of the function.")
    uri: str | None = Field(None, description="What the function reads (a file or folder): when that changes, rows are prepared anew.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches of the named columns; what a dict lacks is missing. Raises DataError for whatever the function raises."""
        held: list[dict[str, Any]] = []
        for item in self._rows():
            if isinstance(item, pa.RecordBatch):
                if held:
                    yield _batch(held, columns, self.kind)
                    held = []
                files.require(self.kind, columns, item.schema.names)
                yield item.select(list(columns))
            elif isinstance(item, dict):
                held.append(item)
                if len(held) == _ROWS:
                    yield _batch(held, columns, self.kind)
                    held = []
            else:
                raise DataError.at(self.kind, f"yields {type(item).__name__}", "yield dicts or pyarrow.RecordBatch")
        if held:
            yield _batch(held, columns, self.kind)

    def fingerprint(self) -> str:
        """A digest of the function's source (`trainer.sources`) and of what `uri` names."""
        load_error = "correct `kind`: it is `package.module:function`"
        try:
            load(self.kind)  # so that what can't be imported is said now
        except (ImportError, AttributeError, ValueError) as error:
            raise DataError.at(self.kind, f"can't be loaded: {error}", load_error) from error
        behind = files.fingerprint(self.uri, ("",)) if self.uri else ""
        return hashlib.sha256(f"{source_digest(self.kind)} {behind}".encode()).hexdigest()

    def _rows(self) -> Iterator[Any]:
        remedy = f"correct the function, or its `args`: {self.args}"
        try:
            yield from load(self.kind)(**self.args)
        except UserError:
            raise
        except Exception as error:
            raise DataError.at(self.kind, f"raised {type(error).__name__}: {error}", remedy) from error


def _batch(rows: list[dict[str, Any]], columns: Sequence[str], place: str) -> pa.RecordBatch:
    known = {name for row in rows for name in row}
    files.require(place, columns, sorted(map(str, known)))
    arrays = []
    for name in columns:
        found: list[Any] = [row.get(name) for row in rows]
        values = [value.tolist() if hasattr(value, "tolist") else value for value in found]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise DataError.at(place, f"yields '{name}' of more than one type: {error}", "give the column one type") from error
    return pa.record_batch(arrays, list(columns))
