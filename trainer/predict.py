"""A trained model that predicts from raw rows.

Shape suffixes: B rows of a batch, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from trainer.errors import DataError, Fault, LaunchError, StoreError, one_of
from trainer.parts import ROW, Column
from trainer.results import MANIFEST, local_cache, verify
from trainer.spec import JointSpec
from trainer.stores import open_store

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.joint import Joint

BATCH = 256
MOST_FAULTS = 100
Fitted = Mapping[str, Mapping[str, Mapping[str, Any]]]


def load(uri: str, device: str = "cpu") -> Predictor:
    """The model at a URI. Its files are checked against their SHA-256 first.

    Args:
        uri: `.../models/<name>` (its champion), `.../models/<name>/versions/<version>`, or the folder of a training
            result; a path, `file://` or `s3://`.
        device: a torch device.

    Raises:
        StoreError: if there is no model, or its files are not what its manifest says.
        LaunchError: if this machine lacks the device, or a module of the user's own that the model is made of.
    """
    store, prefix, sha256 = open_store(uri), "", None
    if store.exists("champion.json"):
        try:
            pointer = json.loads(store.read("champion.json"))
            prefix, sha256 = f"versions/{pointer['version']}", pointer["sha256"]
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError.at(f"{store.uri}/champion.json", "is not a champion", "publish again, or load one of the versions") from error
    place = f"{store.uri}/{prefix}" if prefix else store.uri
    seal = f"{prefix}/{MANIFEST}" if prefix else MANIFEST
    if not store.exists(seal):
        wanted = "give .../models/<name>, .../models/<name>/versions/<version>, or the folder of a training result"
        raise StoreError.at(place, "holds neither a published model nor a training result", wanted)
    if sha256 and hashlib.sha256(store.read(seal)).hexdigest() != sha256:
        raise StoreError.at(
            f"{store.uri}/{seal}", "differs from the SHA-256 in champion.json", "publish again, or load one of the versions"
        )
    folder = Path(store.download(prefix, local_cache(store, prefix)))
    try:
        verify(folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        if (folder / "result.json").is_file():
            said = json.loads((folder / "result.json").read_text())
            document, fitted, name, version = said["spec"], said["fitted"], said["name"], None
        else:
            said = manifest
            document, fitted = (json.loads((folder / file).read_text()) for file in ("spec.json", "preprocessing.json"))
            name, version = manifest["name"], manifest["key"]
        tasks, models = list(said["tasks"]), said.get("models")
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        remedy = "give the URI of a published model or of a training result"
        raise StoreError.at(place, f"holds no model ({type(error).__name__}: {error})", remedy) from error
    spec, module = _module(place, document, fitted, tasks, models, folder / "model.safetensors", device)
    return Predictor(place, name, version, tasks, spec, fitted, module, device)


@dataclass(frozen=True)
class Predictor:
    """A model and what is needed to read raw rows. Columns may go by their name in the source or in the document."""

    uri: str
    name: str
    version: str | None
    """None for a training result, which is not published."""
    tasks: list[str]
    spec: JointSpec
    fitted: Fitted
    """Fitted columns by dataset and column."""
    module: Joint = field(repr=False)
    device: str = "cpu"

    def predict(self, rows: Iterable[Mapping[str, Any]], tasks: Sequence[str] | None = None) -> list[dict[str, dict[str, Any]]]:
        """Predictions for raw rows, in their order.

        A row needs the input columns of the tasks; a null in one is a missing value, as in training. Where something is made of noise
        (an image, say), a whole number `seed` in a row chooses it; without, the row's place among the rows does.

        Args:
            rows: from column to value; lists, numpy arrays or bytes where the column has them.
            tasks: which to predict. Default: all whose input columns occur in at least one row; the others are left out.

        Returns:
            For each row, by task: for a category `{"value": class, "probabilities": {class: probability}}`, for a number
            `{"value": number in the units of the source}`, for an image `{"value": pixels [C][H][W] in the units of the source}`. What is
            not finite is None.

        Raises:
            DataError: with every fault of the rows, by row (counted from 0), or the tasks that are not known.
        """
        rows = list(rows)
        strays = [Fault(f"row {i}", f"is {type(row).__name__}, not columns by name", "give a mapping") for i, row in enumerate(rows)
                  if not isinstance(row, Mapping)]  # fmt: skip
        if strays:
            raise DataError(_first(strays))
        chosen = self._present(rows) if tasks is None else self._known(tasks)
        predictions: list[dict[str, dict[str, Any]]] = [{} for _ in rows]
        blocks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        groups = self._by_dataset(chosen)
        faults: list[Fault] = []
        arrays: dict[str, list[dict[str, list[pa.Array]]]] = {}
        for data, names in groups.items():
            arrays[data] = [self._from_rows(data, names, block, BATCH * i, faults) for i, block in enumerate(blocks)]
        seeds = self._seeds(rows, chosen, faults)
        if faults:
            raise DataError(_first(list(dict.fromkeys(faults))))  # two datasets may share an input
        for data, names in groups.items():
            for i, block in enumerate(arrays[data]):
                for task, scores in self._scores(data, names, block, seeds[BATCH * i :][: len(blocks[i])]).items():
                    for j, prediction in enumerate(self._read(task, scores)):
                        predictions[BATCH * i + j][task] = prediction
        return [{task: row[task] for task in chosen} for row in predictions]

    def scores(self, task: str, batches: Iterable[pa.RecordBatch]) -> np.ndarray:
        """Scores of one task for raw rows, as metrics want them: float32.

        Args:
            task: its name.
            batches: raw rows with at least the task's input columns.

        Returns:
            Probabilities `[rows, K]` in the order of `classes(task)`, or values `[rows]` in the units of the source.

        Raises:
            DataError: for an unknown task, or with every fault of the first batch that has any.
        """
        data = self.spec.tasks[self._known([task])[0]].data
        found, start = [], 0
        for batch in batches:
            for at in range(0, len(batch), BATCH):
                faults: list[Fault] = []
                arrays = self._from_batch(data, [task], batch.slice(at, BATCH), start + at, faults)
                if faults:
                    raise DataError(_first(faults))
                rows = np.arange(start + at, start + at + len(batch.slice(at, BATCH)))
                found.append(self._scores(data, [task], arrays, rows)[task])
            start += len(batch)
        return np.concatenate(found) if found else np.zeros((0, len(self.classes(task))) if self.classes(task) else 0, np.float32)

    def classes(self, task: str) -> list[Any]:
        """The classes of a task in the order of its probabilities; empty for a number."""
        said = self.spec.tasks[task]
        if self.spec.judged_as(task) != "category":
            return []
        return list(self.fitted[said.data][said.target]["classes"])  # type: ignore[index]

    def columns(self, tasks: Sequence[str] | None = None) -> list[str]:
        """The source columns that rows need for these tasks (default: all)."""
        return list(dict.fromkeys(source for data, names in self._by_dataset(self._known(tasks or self.tasks)).items()
                                  for source in self._sources(data, names).values()))  # fmt: skip

    def _known(self, tasks: Sequence[str]) -> list[str]:
        faults = [
            Fault(f"task '{task}'", "the model has no such task", one_of(task, self.tasks)) for task in tasks if task not in self.tasks
        ]
        if faults:
            raise DataError(faults)
        return list(dict.fromkeys(tasks))

    def _present(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        there = {name for row in rows for name in row}
        chosen = []
        for task in self.tasks:
            sources = self._sources(self.spec.tasks[task].data, [task])
            if all(source in there or name in there for name, source in sources.items()):
                chosen.append(task)
        if rows and not chosen:
            needs = "; ".join(f"{task} needs {', '.join(self.columns([task]))}" for task in self.tasks)
            raise DataError.at("rows", f"have columns {', '.join(sorted(map(str, there))) or '(none)'}, which no task can use", needs)
        return chosen

    def _by_dataset(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for task in tasks:
            groups.setdefault(self.spec.tasks[task].data, []).append(task)
        return groups

    def _sources(self, data: str, tasks: Sequence[str]) -> dict[str, str]:
        """Source column of each input column of some tasks."""
        names = dict.fromkeys(name for task in tasks for name in self.spec.columns(task)[0])
        return {name: self.spec.data[data].columns[name].source or name for name in names}

    def _from_rows(
        self, data: str, tasks: Sequence[str], rows: Sequence[Mapping[str, Any]], start: int, faults: list[Fault]
    ) -> dict[str, list[pa.Array]]:
        arrays = {}
        for name, source in self._sources(data, tasks).items():
            keys = [source if source in row else name for row in rows]
            absent = [i for i, (row, key) in enumerate(zip(rows, keys, strict=True)) if key not in row]
            faults += [Fault(f"row {start + i}", f"has no column '{source}'", one_of(source, map(str, rows[i]))) for i in absent]
            values = [row.get(key) for row, key in zip(rows, keys, strict=True)]
            arrays[name] = list(_arrays(values, source, start, faults))
            faults += _faults(self.spec.data[data].columns[name], arrays[name], source, start)
        return arrays

    def _from_batch(
        self, data: str, tasks: Sequence[str], batch: pa.RecordBatch, start: int, faults: list[Fault]
    ) -> dict[str, list[pa.Array]]:
        arrays = {}
        for name, source in self._sources(data, tasks).items():
            key = source if source in batch.schema.names else name
            if key not in batch.schema.names:
                faults.append(Fault(f"row {start}", f"there is no column '{source}'", one_of(source, batch.schema.names)))
                continue
            arrays[name] = [batch[key]]
            faults += _faults(self.spec.data[data].columns[name], arrays[name], source, start)
        return arrays

    def _seeds(self, rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], faults: list[Fault]) -> np.ndarray:
        """Numbers that noise is made from, int64: what rows say, else their places."""
        seeds = np.arange(len(rows))
        if not any(self.spec.tasks[task].objective.draws for task in tasks):  # type: ignore[union-attr]
            return seeds
        for i, row in enumerate(rows):
            seed = row.get("seed")
            if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and 0 <= seed < 2**63:
                seeds[i] = seed
            elif seed is not None:
                faults.append(Fault(f"row {i}.seed", f"{_short(seed)} is no seed", "give a whole number from 0 on, or leave it out"))
        return seeds

    def _scores(self, data: str, tasks: Sequence[str], arrays: Mapping[str, Sequence[pa.Array]], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities `[B, K]` or values `[B]` in the units of the source, float32, by task. Noise is made from `rows`."""
        import torch

        columns, fitted = self.spec.data[data].columns, self.fitted[data]
        inputs: dict[str, Tensor] = {}
        for name, pieces in arrays.items():
            encoded = np.concatenate([columns[name].encode(piece, fitted[name]) for piece in pieces])
            inputs[name] = columns[name].tensor(encoded, fitted[name]).to(self.device)
        inputs[ROW] = torch.from_numpy(np.asarray(rows, np.int64)).to(self.device)
        found = {}
        with torch.inference_mode():
            for task, output_BK in self.module.outputs(tasks, inputs).items():
                objective, target = self.module.tasks[task].objective, self.spec.tasks[task].target
                assert objective is not None  # of a trained document
                score = (output_BK if objective.wide else objective.predict(output_BK)).float().cpu().numpy()
                if self.spec.judged_as(task) == "number" and target is not None:
                    score = np.array(columns[target].decode(score, fitted[target]), np.float32)  # None becomes NaN
                found[task] = score
        return found

    def _read(self, task: str, scores: np.ndarray) -> Iterator[dict[str, Any]]:
        classes = self.classes(task)
        said, kind = self.spec.tasks[task], self.spec.judged_as(task)
        if kind == "images":
            column, fitted = self.spec.data[said.data].columns[said.target], self.fitted[said.data][said.target]  # type: ignore[index]
            yield from ({"value": value} for value in column.decode(scores, fitted))
            return
        if kind not in ("category", "number"):
            yield from ({"value": value} for value in said.objective.say(scores, self.fitted[said.data], said.target))  # type: ignore[union-attr]
            return
        if not classes:
            yield from ({"value": _finite(value)} for value in scores.tolist())
            return
        best = np.where(np.isfinite(scores).all(1), scores.argmax(1), -1)
        assert said.target is not None  # what has classes has a target
        values = self.spec.data[said.data].columns[said.target].decode(best, self.fitted[said.data][said.target])
        for value, row in zip(values, scores.tolist(), strict=True):
            yield {"value": value, "probabilities": dict(zip(classes, map(_finite, row), strict=True))}


def _module(
    place: str, document: Any, fitted: Fitted, tasks: list[str], models: list[str] | None, weights: Path, device: str
) -> tuple[JointSpec, Joint]:  # fmt: skip
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from trainer.joint import build

    try:
        spec = JointSpec.model_validate(document)
        module = build(spec, fitted, tasks, models_kept=models)
        module.load_state_dict(load_file(weights))
    except (ImportError, AttributeError) as error:
        raise LaunchError.at(
            place, f"the model is made of code that is not here: {error}", "install it, or put it on PYTHONPATH"
        ) from error
    except ValidationError as error:
        finding = (
            f"its document is not one of this version of cotrain ({error.error_count()} faults, the first: {error.errors()[0]['msg']})"
        )
        raise StoreError.at(place, finding, "load it with the version that trained it") from error
    except (RuntimeError, SafetensorError, LookupError, OSError) as error:
        finding = f"its weights don't fit its document: {str(error).splitlines()[-1].strip()}"
        raise StoreError.at(place, finding, "load it with the version that trained it, or train again") from error
    try:
        return spec, module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise LaunchError.at(f"device '{device}'", str(error).splitlines()[0], "use 'cpu', or a device that torch finds here") from error


def _arrays(values: Sequence[Any], source: str, start: int, faults: list[Fault]) -> Iterator[pa.Array]:
    """The values as one array, or one by one where their types differ."""
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    try:
        yield pa.array(plain)
        return
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    for i, value in enumerate(plain):
        try:
            yield pa.array([value])
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            faults.append(
                Fault(f"row {start + i}.{source}", f"{_short(value)} can't be read: {error}", "give plain values or lists of them")
            )
            yield pa.nulls(1)


def _faults(column: Column, arrays: Iterable[pa.Array], source: str, start: int) -> list[Fault]:
    faults = []
    for array in arrays:
        for finding in column.checks(array):
            for i, row in enumerate(finding.rows.tolist()):
                shown = finding.found[i] if i < len(finding.found) else _short(array[row].as_py())
                faults.append(Fault(f"row {start + row}.{source}", f"{shown}: such values {finding.problem}", finding.remedy))
        start += len(array)
    return faults


def _first(faults: list[Fault]) -> list[Fault]:
    if len(faults) <= MOST_FAULTS:
        return faults
    return [*faults[:MOST_FAULTS], Fault("rows", f"{len(faults) - MOST_FAULTS:,} more faults are not shown", "correct these first")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
