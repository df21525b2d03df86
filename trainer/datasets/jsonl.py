"""Rows of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files
from trainer.errors import DataError, Fault, one_of
from trainer.parts import Dataset

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.bz2", ".jsonl.zst")
_SHOWN = 5
_PEEKED = 100
_REMEDY = "correct these lines: each must be one JSON object"


class Jsonl(Dataset):
    """Rows of a file with a JSON object per line, or of all such files below a folder. A key that a line lacks is missing there."""

    kind: Literal["jsonl"] = "jsonl"
    uri: str = Field(min_length=1, description="A path, `file://` or `s3://`: a file, or a folder of files; compressed ones too.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches. Raises DataError, after the last row of a file, naming the lines that can't be read."""
        seen: set[str] = set()
        known: set[str] = set()
        for source in files.sources(self.uri, _SUFFIXES):
            with source.local() as path:
                yield from _read(path, source.name, columns, seen, known)
        if known and (absent := [name for name in columns if name not in seen]):
            raise DataError([Fault(self.uri, f"has no '{name}' in any line", one_of(name, known)) for name in absent])

    def fingerprint(self) -> str:
        """A digest of names and contents."""
        return files.fingerprint(self.uri, _SUFFIXES)

    def faults(self, place: str) -> list[Any]:
        """No such file; columns that its only line, or all of its few lines, lack."""
        return files.faults(place, self, self.uri, _SUFFIXES, _names)


def _read(path: Path, place: str, columns: Sequence[str], seen: set[str], known: set[str]) -> Iterator[pa.RecordBatch]:
    wrong: list[Fault] = []
    more = 0
    held: list[dict[str, Any]] = []
    numbers: list[int] = []
    size = 0
    for number, line in _lines(path, place):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())
            if not isinstance(row, dict):
                raise ValueError(f"is {type(row).__name__}, not an object")
        except (ValueError, RecursionError) as error:
            more += len(wrong) >= _SHOWN
            if len(wrong) < _SHOWN:
                wrong.append(Fault(f"{place}:{number}", _word(error), _REMEDY))
            continue
        if len(known) < 1000:
            known.update(row)
        held.append(row)
        numbers.append(number)
        size += len(line)
        if len(held) == files.BATCH_ROWS or size >= files.BATCH_BYTES:
            yield _batch(held, numbers, place, columns, seen)
            held, numbers, size = [], [], 0
    if held:
        yield _batch(held, numbers, place, columns, seen)
    if more:
        wrong.append(Fault(place, f"has {more} more lines that are no JSON objects", _REMEDY))
    if wrong:
        raise DataError(wrong)


def _word(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON: {error.msg}: column {error.colno}"
    return str(error) if str(error).startswith("is ") else f"is no JSON: {error}"


def _batch(rows: list[dict[str, Any]], numbers: list[int], place: str, columns: Sequence[str], seen: set[str]) -> pa.RecordBatch:
    arrays = []
    wrong = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if name not in seen and any(name in row for row in rows):
            seen.add(name)
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, TypeError):
            wrong.append(_odd_one(values, numbers, place, name))
    if wrong:
        raise DataError(wrong)
    return pa.record_batch(arrays, list(columns))


def _odd_one(values: list[Any], numbers: list[int], place: str, name: str) -> Fault:
    """The first value that does not go with those before it, found by halving."""
    low, high = 1, len(values)
    while low < high:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle + 1
        except (pa.ArrowException, OverflowError, TypeError):
            high = middle
    found = repr(values[low - 1])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    finding = f"'{name}' is {found}, of another type than in the lines before"
    if isinstance(values[low - 1], int) and not -(2**63) <= values[low - 1] < 2**64:
        finding = f"'{name}' is {found}, too large for 64 bits"
    return Fault(f"{place}:{numbers[low - 1]}", finding, "give the column one type")


def _lines(path: Path, place: str) -> Iterator[tuple[int, bytes]]:
    """Lines and their numbers, from 1."""
    import io

    try:
        with pa.input_stream(str(path), compression="detect") as stream, io.BufferedReader(stream, 1 << 20) as file:
            yield from enumerate(file, 1)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError.at(place, f"can't be read: {str(error).splitlines()[0]}", "replace the file: it is damaged") from error


def _names(path: Path) -> list[str] | None:
    """Keys of the first lines; None where some of them can't be read, which is reported with the rows."""
    names: dict[str, None] = {}
    for _, line in islice(_lines(path, str(path)), _PEEKED):
        try:
            names.update(dict.fromkeys(json.loads(line)) if line.strip() else {})
        except (ValueError, TypeError):
            return None
    return list(names)
