"""Rows of CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from trainer.datasets import files
from trainer.errors import DataError, Fault
from trainer.parts import Dataset

_SUFFIXES = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".tsv", ".tsv.gz")
_SHOWN = 5
_BLOCK_BYTES = 1 << 20  # the reader holds up to 32 of them
_REMEDY = "correct these lines"


class Csv(Dataset):
    """Rows of a CSV file with a header, or of all below a folder. UTF-8; an empty field is missing; quoted fields may hold line breaks.

    Every field is read as text, and the columns of the document say what it means: no guessing of types.
    """

    kind: Literal["csv"] = "csv"
    uri: str = Field(min_length=1, description="A path, `file://` or `s3://`: a file, or a folder of files; compressed ones too.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="What separates fields.")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches of text. Raises DataError, after the last row, naming the lines that can't be read."""
        for source in files.sources(self.uri, _SUFFIXES):
            with source.local() as path:
                yield from self._read(path, source.name, columns)

    def fingerprint(self) -> str:
        """A digest of names and contents."""
        return files.fingerprint(self.uri, _SUFFIXES)

    def faults(self, place: str) -> list[Any]:
        """No such file; columns that its header lacks."""
        return files.faults(place, self, self.uri, _SUFFIXES, lambda path: self._header(path, str(path)))

    def _read(self, path: Path, place: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as arrow

        files.require(place, columns, self._header(path, place))
        bad = []

        def note(row: Any) -> str:
            bad.append(row.actual_columns)
            del bad[_SHOWN:]
            return "skip"

        wanted = list(dict.fromkeys(columns))
        convert = arrow.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.large_string()), include_columns=wanted, strings_can_be_null=True, null_values=[""]
        )
        parse = arrow.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=note)
        try:
            with _Counted(path) as file:
                options = arrow.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
                with arrow.open_csv(file, read_options=options, parse_options=parse, convert_options=convert) as reader:
                    for batch in reader:
                        yield batch.select(list(columns))
                odd = file.quotes % 2 == 1
        except (pa.ArrowInvalid, OSError) as error:
            if "UTF8" in str(error):
                raise DataError.at(f"{place}:{_undecodable(path)}", "is not UTF-8", "save the file as UTF-8") from error
            remedy = "replace the file: it is damaged, or no CSV file"
            if "straddling" in str(error):  # the words of a reader that works in blocks
                finding, remedy = f"has a row of more than {_BLOCK_BYTES >> 20} MiB", "keep rows of that size as Parquet or JSON lines"
                raise DataError.at(place, finding, remedy) from error
            raise DataError.at(place, f"can't be read: {str(error).splitlines()[0]}", remedy) from error
        if (bad or odd) and (found := self._faults_of_lines(path, place)):
            raise DataError(found)

    def _header(self, path: Path, place: str) -> list[str]:
        try:
            with _Counted(path) as file, io.TextIOWrapper(io.BufferedReader(file), "utf-8-sig", "replace", "") as text:  # type: ignore[type-var]
                names = next(csv.reader(text, delimiter=self.delimiter), [])
        except (OSError, csv.Error) as error:
            raise DataError.at(place, f"can't be read: {error}", "replace the file: it is damaged, or no CSV file") from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            finding = f"names the column '{twice[0]}' twice in its header" if twice else "is empty"
            raise DataError.at(place, finding, "give the file a header with a name of its own for each column")
        return names

    def _faults_of_lines(self, path: Path, place: str) -> list[Fault]:
        """A slow second look, which knows line numbers, at a file in which something is wrong."""
        found = []
        count = 0
        with _Counted(path) as file, io.TextIOWrapper(io.BufferedReader(file), "utf-8-sig", "replace", "") as text:  # type: ignore[type-var]
            reader = csv.reader(text, delimiter=self.delimiter, strict=True)
            line = 1
            try:
                width = len(next(reader))
                line = reader.line_num + 1
                for row in reader:
                    if row and len(row) != width:
                        count += 1
                        if count <= _SHOWN:
                            found.append(Fault(f"{place}:{line}", f"has {len(row)} fields where the header has {width}", _REMEDY))
                    line = reader.line_num + 1
            except csv.Error as error:
                if "end of data" in str(error):
                    found.append(Fault(f"{place}:{line}", "opens a quote that is never closed", _REMEDY))
        if count > _SHOWN:
            found.append(Fault(place, f"has {count - _SHOWN} more lines with a wrong number of fields", _REMEDY))
        return found


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8."""
    with _Counted(path) as file, io.BufferedReader(file) as lines:  # type: ignore[type-var]
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


class _Counted(io.RawIOBase):
    """A file, decompressed by its suffix, that counts the quotes that were read: an odd number means one is open."""

    def __init__(self, path: Path) -> None:
        self.quotes = 0
        self._file = pa.input_stream(str(path), compression="detect")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.quotes += data.count(b'"')
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
