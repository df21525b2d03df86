"""How good every model of one task is on the test rows: scores with intervals, and the predictions they come from.

Shape suffixes: N test rows whose target is there, K classes, R resamples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from trainer.bootstrap import interval, on_all_rows, resample
from trainer.errors import CotrainError, UserError
from trainer.parts import ROW, Metric
from trainer.results import Result, key_of, keyed, read_manifest
from trainer.spec import JointSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.joint import Joint

BATCH = 256
_MOST_CONFUSION = 256
_ACROSS, _DOWN = 10, 6
"""Samples that are shown."""


class Champion(Protocol):
    """The promoted model, as `trainer.predict.load` gives it."""

    @property
    def tasks(self) -> list[str]:
        """What it was trained on."""

    @property
    def spec(self) -> JointSpec:
        """The document it was trained from."""

    @property
    def fitted(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Its fitted columns, by dataset and column."""

    def scores(self, task: str, batches: Iterable[pa.RecordBatch]) -> np.ndarray:
        """Probabilities `[rows, its classes]`, or values `[rows]` in the units of the source, for raw rows."""


def evaluate_task(
    task: str,
    spec: JointSpec,
    joint: Sequence[Path],
    independent: Sequence[Path],
    data: Path,
    root: str,
    champion: tuple[str, Champion] | None = None,
) -> Result:
    """Score every model of a task on the same test rows. Found again if nothing it depends on has changed.

    Args:
        task: its name in `spec`, which says the metrics and how intervals are made.
        joint, independent: folders of training results, one a seed.
        data: folder of the prepared dataset of the task.
        root: where results are kept.
        champion: version and model that is promoted now. A version stands for its bytes.

    Returns:
        `scores.json` and `predictions-*.arrow`, see docs/architecture.md.

    Raises:
        CotrainError: if a model was trained on other data than `data` holds, or without this task.
    """
    manifest = read_manifest(data)
    runs = {role: [_run(folder, task) for folder in folders] for role, folders in (("joint", joint), ("independent", independent))}
    for run in [*runs["joint"], *runs["independent"]]:
        trained_on = run["data"][spec.tasks[task].data]["digest"]
        if trained_on != manifest["digest"]:
            raise CotrainError(f"{task}: the model {run['key']} was trained on data {trained_on}, not on {manifest['digest']} of {data}")
    metrics = metrics_of(spec, task)
    key = key_of(
        "score", task, spec.tasks[task].data, spec.tasks[task].target, manifest["digest"],
        {role: [run["key"] for run in found] for role, found in runs.items()},
        {name: metric.model_dump(mode="json") for name, metric in metrics.items()},
        spec.compare.confidence, spec.compare.resamples, champion[0] if champion else None,
    )  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        folders = {"joint": joint, "independent": independent}
        trained = [(role, run, place) for role in runs for run, place in zip(runs[role], folders[role], strict=True)]
        _score(task, spec, metrics, trained, champion, data, folder)
        return {"task": task, "data": manifest["digest"]}

    return keyed(root, "score", key, make)


def metrics_of(spec: JointSpec, task: str) -> dict[str, Metric]:
    """The metrics of a task by name, the primary one first. `spec` is resolved (`trainer.check`)."""
    return {metric.kind: metric for metric in spec.tasks[task].metrics or []}


def read_predictions(path: Path) -> tuple[Tensor, Tensor]:
    """Score (`[N, K]` or `[N]`) and target `[N]` of a `predictions-*.arrow`."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        return _tensor(table, "score"), _tensor(table, "target")


def _tensor(table: pa.Table, name: str) -> Tensor:
    """A column of a predictions file, `[N]` or in its own shape."""
    import torch

    array = table[name].combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        found = array.to_numpy(zero_copy_only=False)
        return torch.tensor(found, dtype=torch.int64 if pa.types.is_integer(array.type) else torch.float32)
    whole = pa.types.is_integer(array.type.value_type)
    shape = json.loads((table.schema.metadata or {}).get(f"{name}_shape".encode(), b"null")) or [array.type.list_size]
    flat = torch.tensor(array.flatten().to_numpy(zero_copy_only=False), dtype=torch.int64 if whole else torch.float32)
    return flat.view(len(array), *shape)


def why_undefined(score: Tensor, target: Tensor) -> str:
    """Why a metric may be NaN on these rows, in words."""
    if not len(target):
        return "no test row has a target"
    if not score.isfinite().all():
        return "its predictions are not finite: training diverged"
    if len(target.unique()) == 1:
        return f"all {len(target)} test rows have the same target"
    return f"it is not defined on these {len(target)} predictions"


def _run(folder: Path, task: str) -> dict[str, Any]:
    run = json.loads((folder / "result.json").read_text())
    if task not in run["tasks"]:
        raise CotrainError(f"the model {run['key']} in {folder} was trained on {', '.join(run['tasks'])}, not on {task}")
    return run


def _score(
    task: str, spec: JointSpec, metrics: Mapping[str, Metric], trained: Sequence[tuple[str, Mapping[str, Any], Path]],
    champion: tuple[str, Champion] | None, data: Path, folder: Path,
) -> None:  # fmt: skip
    """Fill a folder with the predictions and scores of every model."""
    import torch

    from trainer.joint import known
    from trainer.shards import Split

    manifest, fitted = read_manifest(data), json.loads((data / "fitted.json").read_text())
    split, kind = Split(data, manifest, "test"), spec.judged_as(task)
    everything = np.arange(len(split))
    labels: list[str] = []
    if kind in ("category", "number"):
        name = spec.tasks[task].target
        assert name is not None  # of a checked document
        column, target_fitted = spec.data[spec.tasks[task].data].columns[name], fitted[name]
        target = column.tensor(split.gather(name, everything), target_fitted)
        if kind == "category":
            labels = [_written(label) for label in target_fitted["classes"]]
    else:  # what is right is for the objective to say
        _, run, place = trained[0]
        _, target = judged(task, place, run, split, everything)
    there = known(target)
    if kind == "number":
        target = _in_source_units(target, column, target_fitted)

    judged_rows, models = np.flatnonzero(there), []
    for role, run, place in trained:
        without = {
            column: _points(metrics, outputs(task, place, run, split, judged_rows, column), target[there], len(labels))
            for column in spec.tasks[task].objective.spares()  # type: ignore[union-attr]
        }
        about = {"role": role, "seed": run["seed"], "train_key": run["key"], "without": without}
        models.append((about, outputs(task, place, run, split, judged_rows)))
    status, note = ("none", "no model is promoted") if champion is None else ("scored", None)
    if champion is not None:
        found, status, note = _champion_scores(task, spec, champion[1], labels, fitted, data, manifest)
        if found is not None:
            models.append(({"role": "champion", "seed": None, "train_key": None, "without": {}}, torch.from_numpy(found)[there]))

    target = target[there]
    samples: dict[str, str] = {}
    if spec.tasks[task].objective.looks:  # type: ignore[union-attr]
        shown, across = _shown(spec, task, split, judged_rows)
        by_role = {about["role"]: score for about, score in reversed(models)}  # of several seeds the first
        seen = {"real": target, **{role: by_role[role] for role in ("joint", "independent", "champion") if role in by_role}}
        samples = {role: _sheet(images[shown], fitted[spec.tasks[task].target], across) for role, images in seen.items()}
        _, run, place = trained[0]
        target, *looked = _features(task, place, run, [target, *(score for _, score in models)])
        models = [(about, score) for (about, _), score in zip(models, looked, strict=True)]
    judged_scores = [score for _, score in models]
    points = on_all_rows(metrics, judged_scores, target, len(labels))
    spread = resample(metrics, judged_scores, target, len(labels), spec.compare.resamples, points)
    entries: dict[str, list[dict[str, Any]]] = {"joint": [], "independent": [], "champion": []}
    for (about, score), values, point in zip(models, spread, points, strict=True):
        role, seed = about.pop("role"), about["seed"]
        file = f"predictions-{role}-{seed or 0}.arrow"
        _write_predictions(folder / file, score, target)
        found_of = {}
        for metric in metrics:
            low, high = interval(values[metric], spec.compare.confidence)
            found_of[metric] = {"value": finite(point[metric]), "low": finite(low), "high": finite(high)}
        entries[role].append(
            {**about, "confusion": _confusion(score, target, len(labels)) if labels else None, "metrics": found_of, "predictions": file}
        )
    scores = {
        "task": task, "target": kind, "classes": labels, "rows": len(target), "rows_without_target": len(split) - len(target),
        "primary": next(iter(metrics)), "higher_is_better": {metric: part.higher_is_better for metric, part in metrics.items()},
        "champion_version": champion[0] if champion else None, "champion_status": status, "champion_note": note, "models": entries,
        "samples": samples,
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores, indent=1, allow_nan=False))


def _points(metrics: Mapping[str, Metric], score: Tensor, target: Tensor, classes: int) -> dict[str, float | None]:
    """Each metric of one model over the rows as they are, as JSON has it."""
    (found,) = on_all_rows(metrics, [score], target, classes)
    return {metric: finite(value) for metric, value in found.items()}


def _features(task: str, folder: Path, run: Mapping[str, Any], values: Sequence[Tensor]) -> list[Tensor]:
    """Predictions or truths of several models as the metrics of the task get them, by what one model makes of them."""
    import torch

    module, device = _loaded(folder, run)
    with torch.inference_mode():
        return [torch.cat([module.features(task, block.to(device)).cpu() for block in x.split(BATCH)]) if len(x) else x.flatten(1)
                for x in values]  # fmt: skip


def _shown(spec: JointSpec, task: str, split: Any, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Which of some rows are shown as samples, and how many side by side: those of one class below one another where there are classes."""
    said = spec.tasks[task]
    kinds = spec.data[said.data].columns
    told = [name for name in spec.columns(task)[0] if kinds[name].kind == "category"]
    if not told:
        return np.arange(min(len(rows), _ACROSS * _DOWN)), _ACROSS
    value = split.gather(told[0], rows)
    of_class = [np.flatnonzero(value == k)[:_DOWN] for k in np.unique(value)[:_ACROSS]]
    down = min(len(some) for some in of_class)
    return np.stack([some[:down] for some in of_class], 1).ravel(), len(of_class)


def _sheet(image: Tensor, fitted: Mapping[str, Any], across: int) -> str:
    import torch

    from trainer.pictures import sheet

    mean, std = (torch.tensor(fitted[name])[:, None, None] for name in ("mean", "std"))
    return sheet(image * std + mean, across)


def outputs(task: str, folder: Path, run: Mapping[str, Any], split: Any, rows: np.ndarray, without: str | None = None) -> Tensor:
    """Scores of a trained model on rows of a split, float32: probabilities `[N, K]`, values `[N]` in the units of the source, or
    `[N, ...]` whatever its objective predicts. `without` names a column that is missing in all of them.
    """
    document = JointSpec.model_validate(run["spec"])
    score, _ = judged(task, folder, run, split, rows, without)
    if document.judged_as(task) != "number":
        return score
    said = document.tasks[task]
    return _in_source_units(score, document.data[said.data].columns[said.target], run["fitted"][said.data][said.target])  # type: ignore[index]


def _loaded(folder: Path, run: Mapping[str, Any]) -> tuple[Joint, torch.device]:
    """A trained model, and where it is."""
    import torch
    from safetensors.torch import load_file

    from trainer.joint import build

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = build(JointSpec.model_validate(run["spec"]), run["fitted"], run["tasks"])
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module.to(device).eval(), device


def judged(
    task: str, folder: Path, run: Mapping[str, Any], split: Any, rows: np.ndarray, without: str | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predictions of a trained model on rows of a split, and what they are judged against, as its objective gives them."""
    import torch

    from trainer.joint import blank

    document = JointSpec.model_validate(run["spec"])
    said = document.tasks[task]
    columns, fitted = document.data[said.data].columns, run["fitted"][said.data]
    module, device = _loaded(folder, run)
    needed = [name for part in document.columns(task) for name in part]
    blocks = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            encoded = {
                name: columns[name].encode(pa.nulls(len(some)), fitted[name]) if name == without else split.gather(name, some)
                for name in needed
            }
            there = {name: columns[name].tensor(value, fitted[name]).to(device) for name, value in encoded.items()}
            there[ROW] = torch.from_numpy(np.asarray(some, np.int64)).to(device)
            blocks.append([x.cpu() for x in module.judged(task, there)])
        if not blocks:  # of no rows there is nothing but a shape, which a blank row has too
            blocks.append([x.cpu()[:0] for x in module.judged(task, {name: blank(fitted[name], device) for name in needed})])
    score, truth = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return score.float(), truth


def _in_source_units(values: Tensor, column: Any, fitted: Mapping[str, Any]) -> Tensor:
    import torch

    # decode gives None for NaN, which numpy turns back
    return torch.from_numpy(np.array(column.decode(values.numpy(), fitted), dtype=np.float32))


def _champion_scores(
    task: str, spec: JointSpec, model: Champion, labels: Sequence[str], fitted: Mapping[str, Any], data: Path, manifest: Mapping[str, Any]
) -> tuple[np.ndarray | None, str, str | None]:
    """Scores of the promoted model on all test rows in our order of classes, or None; a status; what to know about them."""
    if task not in model.tasks:
        return None, "unknown_task", f"the champion does not know the task '{task}', only {', '.join(model.tasks)}"
    ours, theirs = spec.tasks[task], model.spec.tasks[task]
    kind, other = spec.judged_as(task), model.spec.judged_as(task)
    if (ours.target, kind) != (theirs.target, other):
        return (
            None,
            "unfit",
            f"the champion's task '{task}' predicts the {_thing(other, theirs.target)}, not the {_thing(kind, ours.target)}",
        )
    if kind not in ("category", "number") and ours.target is not None:
        mine, other_classes = (known.get("classes") for known in (fitted[ours.target], model.fitted[theirs.data][ours.target]))
        if mine != other_classes:
            return None, "unfit", f"the champion knows other classes of '{ours.target}': {', '.join(map(_written, other_classes or []))}"
    try:
        found = np.asarray(model.scores(task, _raw_rows(data, manifest)), dtype=np.float32)
    except UserError as error:
        return None, "unfit", f"the champion can't read these rows: {error.faults[0].place}: {error.faults[0].finding}"
    if len(found) != manifest["rows"]["test"]:
        raise CotrainError(f"{task}: the champion gave {len(found)} predictions for {manifest['rows']['test']} test rows")
    if kind == "images":
        there, here = model.fitted[theirs.data][theirs.target], fitted[ours.target]  # type: ignore[index]
        if list(there["shape"]) != list(here["shape"]):
            return None, "unfit", f"the champion makes images of shape {there['shape']}, not {here['shape']}"
        found = _renormalised(found, there, here)
    if kind == "category":
        places = {_written(label): k for k, label in enumerate(model.fitted[theirs.data][theirs.target]["classes"])}  # type: ignore[index]
        # a class that the champion never saw gets no probability from it
        found = np.stack([found[:, places[label]] if label in places else np.zeros(len(found), np.float32) for label in labels], 1)
    before, now = model.spec.data[theirs.data], spec.data[ours.data]
    if (before.split, before.key) != (now.split, now.key):
        return found, "scored", "the champion was trained with another split: it may have learnt from these test rows"
    return found, "scored", None


def _renormalised(found: np.ndarray, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> np.ndarray:
    """Images as they are with our mean and deviation."""
    mean, std, our_mean, our_std = (np.array(x[name], np.float32)[:, None, None] for x in (theirs, ours) for name in ("mean", "std"))
    return (found * std + mean - our_mean) / our_std


def _raw_rows(data: Path, manifest: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    """The test rows as they were in the source, a batch at a time, in the order of the test split."""
    from trainer.shards import Split

    for shard in Split(data, manifest, "raw-test").batches():
        yield from (shard.slice(start, BATCH) for start in range(0, len(shard), BATCH))


def _thing(kind: str, target: str | None) -> str:
    return f"{kind} '{target}'" if target is not None else kind


def _write_predictions(path: Path, score: Tensor, target: Tensor) -> None:
    shapes = {f"{name}_shape": json.dumps(list(x.shape[1:])) for name, x in (("score", score), ("target", target)) if x.dim() > 2}
    whole = pa.float32() if target.is_floating_point() else pa.int32()
    table = pa.table({"target": _rows(target, whole), "score": _rows(score, pa.float32())}, metadata=shapes or None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _rows(x: Tensor, kind: pa.DataType) -> pa.Array:
    flat = pa.array(x.numpy().ravel(), kind)
    return flat if x.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, math.prod(x.shape[1:]))


def _confusion(score: Tensor, target: Tensor, classes: int) -> list[list[int]] | None:
    """Rows by class (down) and most probable class (across); None for numbers and for more classes than anyone reads."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    if not 2 <= classes <= _MOST_CONFUSION or not score.isfinite().all():
        return None
    return multiclass_confusion_matrix(score.argmax(1), target, classes, validate_args=False).tolist()


def finite(value: float) -> float | None:
    """A number as JSON has it: null for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _written(label: Any) -> str:
    """A label as `Category` writes it: what labels of two models are compared by."""
    return str(label).lower() if isinstance(label, bool) else str(label)
