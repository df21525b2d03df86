"""Rows to encoded shards: two passes over a source that may be larger than memory.

The first pass checks every row, draws its split, spools it to disk and summarises the training rows;
the second encodes split by split. What is held in memory is a batch, a shard, and the columns' summaries.
Rows are counted from 0 in the order of the source.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer import results, rowhash
from trainer.duplicates import Duplicates
from trainer.errors import DataError, Fault, StoreError, one_of
from trainer.parts import Column, Dataset, State
from trainer.shards import ShardWriter, write_batch
from trainer.spec import digest

SPLITS = ["train", "valid", "test"]
_CHUNK_ROWS = 8192
_CHUNK_BYTES = 2 << 20
_SHOWN = 5
_WORK = ".work"


def prepare(name: str, dataset: Dataset, root: str) -> results.Result:
    """The prepared dataset, found below `root` or made now.

    The folder holds encoded shards, the raw test rows, `fitted.json` and `report.json`; the manifest says
    `digest` (of the encoded content and fitted state), `rows` and `shards`. See docs/architecture.md.

    Args:
        name: of the dataset in the document, for messages.
        dataset: where rows come from.
        root: where results are kept: a path, `file://` or `s3://`.

    Raises:
        DataError: with every fault of the source at once; nothing is left behind.
    """
    before = dataset.fingerprint()
    return results.keyed(root, "data", data_key(dataset, before), lambda folder: _make(f"data.{name}", dataset, folder, before))


def data_key(dataset: Dataset, fingerprint: str) -> str:
    """The key of a prepared dataset."""
    return results.key_of("data", dataset.model_dump(mode="json"), fingerprint)


def _make(place: str, dataset: Dataset, folder: Path, before: str) -> dict[str, Any]:
    work = folder / _WORK
    try:
        work.mkdir()
        first = _FirstPass(place, dataset, work)
        first.run()
        if dataset.fingerprint() != before:
            raise DataError.at(place, "the source changed while it was read", "run again when nothing writes to it")
        fitted = first.finish()
        manifest, report = _second_pass(dataset, fitted, first, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "free some, or set TMPDIR to a folder that has room for the source and the prepared rows"
        raise StoreError.at(str(folder), "no space is left on this disk", remedy) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    (folder / "fitted.json").write_text(json.dumps(fitted, indent=1, sort_keys=True))
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    return manifest


@dataclass
class _Wrong:
    """Values of one column with one problem."""

    remedy: str
    count: int = 0
    shown: list[str] = field(default_factory=list)


_PARTNER_BUCKETS = 64  # files are open for each modality at once


class _FirstPass:
    """Checks, splits, spools and summarises."""

    def __init__(self, place: str, dataset: Dataset, work: Path) -> None:
        self._place, self._dataset = place, dataset
        self._columns = dataset.columns
        self._source = {name: column.source or name for name, column in self._columns.items()}
        self._sources = list(dict.fromkeys(self._source.values()))
        key = dataset.key
        self._key = sorted(set(self._sources)) if key is None else [key] if isinstance(key, str) else list(key)
        self._salt = hashlib.blake2b(dataset.split.salt.encode(), digest_size=32).digest()
        self._state: dict[str, State] = {name: {} for name in self._columns}
        self._wrong: dict[tuple[str, str], _Wrong] = {}
        self._faults: list[Fault] = []
        self._row = 0
        self.spools = {split: _Spool(work / split) for split in SPLITS}
        self.modalities = _Modalities([name for name, column in self._columns.items() if column.modality])
        self.inputs = self.modalities.names or list(self._columns)
        (work / "digests").mkdir()
        self.duplicates = Duplicates(work / "digests", SPLITS)
        self.partners: dict[str, Duplicates] = {}
        """Of several modalities: which values of each stand beside which of the others."""
        for name in self.modalities.names if len(self.modalities.names) > 1 else ():
            (work / f"partners-{name}").mkdir()
            self.partners[name] = Duplicates(work / f"partners-{name}", SPLITS, _PARTNER_BUCKETS)

    def run(self) -> None:
        """Read the source once. Raises DataError with all that is wrong."""
        wanted = list(dict.fromkeys([*self._sources, *self._key]))
        try:
            with ExitStack() as spilled:
                for collected in (self.duplicates, *self.partners.values()):
                    spilled.enter_context(collected)
                for batch in self._dataset.batches(wanted):
                    self._require(batch, wanted)
                    for chunk in _chunks(_plain(batch)):
                        self._add(chunk)
        except DataError as error:
            self._faults += [Fault(self._place, f"{fault.place}: {fault.finding}", fault.remedy) for fault in error.faults]
        finally:
            for spool in self.spools.values():
                spool.close()
        for (name, problem), wrong in self._wrong.items():
            finding = f"{wrong.count:,} of {self._row:,} values {problem}: {'; '.join(wrong.shown)}"
            more = "; ..." if wrong.count > len(wrong.shown) else ""
            self._faults.append(Fault(f"{self._place}.{name}", finding + more, wrong.remedy))
        if not self._faults:
            self._check_sizes()
        if self._faults:
            raise DataError(self._faults)

    def finish(self) -> dict[str, dict[str, Any]]:
        """The summary of each column over the training rows."""
        fitted = {}
        faults = []
        for name, column in self._columns.items():
            try:
                fitted[name] = column.finish(self._state[name])
            except ValueError as error:
                faults.append(Fault(f"{self._place}.{name}", str(error), "fill the column, or take it out of the spec"))
        if faults:
            raise DataError(faults)
        return fitted

    def _require(self, batch: pa.RecordBatch, wanted: list[str]) -> None:
        absent = [name for name in wanted if name not in batch.schema.names]
        if absent:
            known = batch.schema.names
            raise DataError([Fault(f"row {self._row:,}", f"there is no column '{name}'", one_of(name, known)) for name in absent])

    def _add(self, chunk: pa.RecordBatch) -> None:
        for name, column in self._columns.items():
            self._check(name, column, chunk[self._source[name]])
        if not self._wrong and not self._faults:
            drawn = rowhash.uniform(rowhash.digests([chunk[name] for name in self._key], self._salt))
            shares = self._dataset.split
            split = np.where(drawn < shares.test, 2, np.where(drawn < shares.test + shares.valid, 1, 0)).astype(np.uint8)
            rows = np.arange(self._row, self._row + len(chunk), dtype=np.uint64)
            self._compare(chunk, rows, split)
            raw = chunk.select(self._sources)
            for number, name in enumerate(SPLITS):
                self.spools[name].add(raw.take(pa.array(np.flatnonzero(split == number))))
            train = chunk.take(pa.array(np.flatnonzero(split == 0)))
            for name, column in self._columns.items():
                try:
                    self._state[name] = column.observe(train[self._source[name]], self._state[name])
                except ValueError as error:
                    self._faults.append(Fault(f"{self._place}.{name}", str(error), "choose another kind for the column"))
        self._row += len(chunk)

    def _check(self, name: str, column: Column, values: pa.Array) -> None:
        for finding in column.checks(values):
            wrong = self._wrong.setdefault((name, finding.problem), _Wrong(finding.remedy))
            wrong.count += len(finding.rows)
            for index, row in enumerate(finding.rows[: _SHOWN - len(wrong.shown)].tolist()):
                found = finding.found[index] if index < len(finding.found) else _short(values[row].as_py())
                wrong.shown.append(f"row {self._row + row}: {found}")

    def _compare(self, chunk: pa.RecordBatch, rows: np.ndarray, split: np.ndarray) -> None:
        missing = {name: self._columns[name].missing(chunk[self._source[name]]) for name in self.inputs}
        self.modalities.add(missing, rows)
        # rows of which nothing is known are not equal to one another
        there = np.flatnonzero(~np.logical_and.reduce([*missing.values()]))
        labels = [self._source[name] for name in self._columns if name not in self.inputs]
        inputs = rowhash.digests([chunk[self._source[name]] for name in self.inputs])[there]
        label = rowhash.digests([chunk[name] for name in labels])[there, 0] if labels else np.zeros(len(there), np.uint64)
        self.duplicates.add(inputs, label, rows[there], split[there])
        whole = np.flatnonzero(~np.logical_or.reduce([*missing.values()]))
        for name, partners in self.partners.items():
            others = [chunk[self._source[other]] for other in self.modalities.names if other != name]
            own = rowhash.digests([chunk[self._source[name]]])[whole]
            partners.add(own, rowhash.digests(others)[whole, 0], rows[whole], split[whole])

    def _check_sizes(self) -> None:
        rows = {name: spool.rows for name, spool in self.spools.items()}
        shares = {"train": 1.0, "valid": self._dataset.split.valid, "test": self._dataset.split.test}
        empty = [name for name in SPLITS if shares[name] > 0 and not rows[name]]
        if not self._row:
            self._faults.append(Fault(self._place, "the source has no rows", "check where it points to"))
        elif empty:
            counts = ", ".join(f"{name} {rows[name]:,}" for name in SPLITS)
            remedy = "give more rows, other shares, another `salt`, or a `key` that tells more rows apart"
            self._faults.append(Fault(f"{self._place}.split", f"no row falls to {' or '.join(empty)} ({counts})", remedy))


def _second_pass(
    dataset: Dataset, fitted: dict[str, dict[str, Any]], first: _FirstPass, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encode the spooled rows; the manifest's share and the report."""
    columns = {name: {"kind": column.kind, "splits": {}} for name, column in dataset.columns.items()}
    shards: dict[str, list[str]] = {}
    content: dict[str, str] = {}
    for split in SPLITS:
        writer = ShardWriter(folder, split, fitted, dataset.shard_bytes)
        raw = _RawWriter(folder, dataset.shard_bytes) if split == "test" else None
        state: dict[str, State] = {name: {} for name in columns}
        missing = dict.fromkeys(columns, 0)
        sha = {name: hashlib.sha256() for name in columns}
        for batch in first.spools[split].batches():
            if raw:
                raw.add(batch)
            for chunk in _chunks(batch, writer.row_bytes):
                encoded = {}
                for name, column in dataset.columns.items():
                    values = chunk[column.source or name]
                    encoded[name] = column.encode(values, fitted[name])
                    state[name] = column.tally(values, encoded[name], fitted[name], state[name])
                    missing[name] += int(column.missing(values).sum())
                    sha[name].update(np.ascontiguousarray(encoded[name]).data)
                writer.add(encoded)
        writer.close()
        shards[split] = writer.paths
        if raw:
            shards["raw-test"] = raw.close()
        for name, column in dataset.columns.items():
            content[f"{split}/{name}"] = sha[name].hexdigest()
            share = missing[name] / writer.rows if writer.rows else 0.0
            described = column.describe(state[name], fitted[name]) if writer.rows else {}
            columns[name]["splits"][split] = {"missing": missing[name], "missing_share": share, **described}  # type: ignore[index]
    rows = {split: first.spools[split].rows for split in SPLITS}
    report = {
        "rows": rows,
        "columns": columns,
        "duplicates": {"columns": first.inputs, **first.duplicates.report()},
        "modalities": first.modalities.report(),
        "pairs": {name: partners.report()["conflicts"] for name, partners in first.partners.items()} or None,
    }
    return {"digest": digest(fitted, content, rows), "rows": rows, "shards": shards}, report


class _Modalities:
    """In which rows one of several modalities is missing."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._missing: dict[str, list[Any]] = {name: [0, []] for name in names}
        self._none = 0

    def add(self, missing: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Add rows: which of them miss which column."""
        if len(self.names) < 2:
            return
        none = np.logical_and.reduce([missing[name] for name in self.names])
        self._none += int(none.sum())
        for name in self.names:
            found = rows[missing[name]]
            self._missing[name][0] += len(found)
            self._missing[name][1] += found[: _SHOWN - len(self._missing[name][1])].tolist()

    def report(self) -> dict[str, Any] | None:
        """`missing`: rows without each column, and the first of them; `none`: rows without any. None for fewer than two modalities."""
        if len(self.names) < 2:
            return None
        missing = {name: {"rows": count, "examples": examples} for name, (count, examples) in self._missing.items()}
        return {"columns": self.names, "missing": missing, "none": self._none}


class _Spool:
    """Raw rows of one split on disk, in Arrow IPC streams: a new one whenever the schema changes."""

    def __init__(self, stem: Path) -> None:
        self.rows = 0
        self._stem = stem
        self._paths: list[Path] = []
        self._schema: pa.Schema | None = None
        self._writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        if not len(batch):
            return
        if self._writer is None or batch.schema != self._schema:
            self.close()
            self._paths.append(self._stem.with_name(f"{self._stem.name}-{len(self._paths):05d}.rows"))
            self._writer, self._schema = pa.ipc.new_stream(str(self._paths[-1]), batch.schema), batch.schema
        self._writer.write_batch(batch)
        self.rows += len(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        for path in self._paths:
            # read, not memory-mapped: mapped pages would count as ours wherever memory is limited
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                yield from stream
            path.unlink()


class _RawWriter:
    """The raw test rows as shards of one record batch each."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._paths: list[str] = []

    def add(self, batch: pa.RecordBatch) -> None:
        if self._held and self._held[0].schema != batch.schema:
            self._flush()
        for chunk in _chunks(batch, most_bytes=self._limit):
            self._held.append(chunk)
            self._bytes += chunk.nbytes
            if self._bytes >= self._limit:
                self._flush()

    def close(self) -> list[str]:
        self._flush()
        return self._paths

    def _flush(self) -> None:
        for batch in pa.Table.from_batches(self._held).combine_chunks().to_batches() if self._held else []:
            name = f"raw-test-{len(self._paths):05d}.arrow"
            write_batch(self._folder / name, batch)
            self._paths.append(name)
        self._held, self._bytes = [], 0


def _chunks(batch: pa.RecordBatch, row_bytes: int = 0, most_bytes: int = _CHUNK_BYTES) -> Iterator[pa.RecordBatch]:
    """A batch in slices of bounded size, raw and encoded."""
    if not len(batch):
        return
    size = max(1, row_bytes, -(-batch.nbytes // len(batch)))
    step = max(1, min(_CHUNK_ROWS, min(most_bytes, _CHUNK_BYTES) // size))
    for start in range(0, len(batch), step):
        yield batch.slice(start, step)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Dictionary-encoded columns decoded, so that rows don't depend on how a writer packed them."""
    arrays = [values.dictionary_decode() if pa.types.is_dictionary(values.type) else values for values in batch.columns]
    return pa.record_batch(arrays, batch.schema.names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
