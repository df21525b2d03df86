"""Model folders in a store, and the champion: the version of a model that is in use.

models/<name>/versions/<version>/   model.safetensors  spec.json  preprocessing.json  metrics.json  README.md  manifest.json
models/<name>/champion.json         replaced atomically, never to a version that is not whole
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.errors import CotrainError, GateFailed, StoreError
from trainer.parts import Store
from trainer.results import MANIFEST, read_manifest, verify, write_manifest
from trainer.spec import JointSpec, digest
from trainer.stores import open_store

Json = Mapping[str, Any]
_WEIGHTS = "model.safetensors"
_CARD = Path(__file__).parent / "templates" / "model_card.md"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Published:
    """A version that is in the store and is the champion."""

    version: str
    uri: str
    champion_before: str | None
    """The version that was the champion before; this one, if it was already."""


def publish(train: Path, verdict: Json, store_uri: str, also: Collection[str] = ()) -> Published:
    """Put a trained model into a store and make it the champion. Done twice, it is done once.

    A version is named by two digests: of the model (weights, document, preprocessing), and of what is said about it
    (verdict, card). If the champion is this very model already, nothing is written, whatever the verdict says.
    A crash at any moment leaves the champion as it was or moved, and the version it names whole.

    Args:
        train: folder of a training result.
        verdict: `verdict.json` of its comparison.
        store_uri: a path, `file://` or `s3://`.
        also: models to publish besides those that predictions need.

    Raises:
        GateFailed: if the verdict says that a gate did not pass.
        StoreError: if the result is damaged, or the store can't be written.
    """
    if not verdict["gate"]["passed"]:
        raise GateFailed("\n".join(check["says"] for check in verdict["gate"]["checks"] if not check["passed"]) or "a gate did not pass")
    verify(train)
    run = json.loads((train / "result.json").read_text())
    spec = JointSpec.model_validate(run["spec"])
    needed = dict.fromkeys(spec.tasks[read].data for task in run["tasks"] for read in spec.reads(task))
    preprocessing = {data: run["fitted"][data] for data in needed}
    models_kept = _models_kept(spec, run["tasks"], also)
    # what the weights are cut down to is a function of the file and of these names
    model = digest(read_manifest(train)["files"][_WEIGHTS]["sha256"], run["spec"], preprocessing, run["tasks"], models_kept)[:12]
    # everything in the folder is in its name: whoever writes to it writes the same bytes
    version = f"{model}-{digest(verdict, run['key'], card(run, verdict, '', models_kept))[:8]}"
    store, models = open_store(store_uri), f"models/{run['name']}"
    base, pointer = f"{models}/versions/{version}", f"{models}/champion.json"

    now = _pointer(store, pointer)
    if now and now["version"].startswith(f"{model}-") and _sealed(store, f"{models}/versions/{now['version']}") == now["sha256"]:
        return Published(now["version"], f"{store.uri}/{models}/versions/{now['version']}", now["version"])
    with tempfile.TemporaryDirectory(prefix="cotrain-publish-") as scratch:
        folder = Path(scratch) / "version"
        folder.mkdir()
        if not _whole(store, base, Path(scratch) / "there"):
            _keep(train / _WEIGHTS, set(spec.models) - set(models_kept), folder / _WEIGHTS)
            for file, content in {"spec.json": run["spec"], "preprocessing.json": preprocessing, "metrics.json": verdict}.items():
                (folder / file).write_text(json.dumps(content, indent=1))
            (folder / "README.md").write_text(card(run, verdict, version, models_kept))
            about = {"name": run["name"], "tasks": run["tasks"], "models": models_kept, "train_key": run["key"]}
            write_manifest(folder, "model", version, **about)
            store.upload(folder, base)
    before = _promote(store, pointer, base, version)
    return Published(version, f"{store.uri}/{base}", before)


def champion(store_uri: str, name: str) -> dict[str, Any] | None:
    """`version`, `sha256` of its manifest, `promoted_at` and `uri` of the model in use; None if nothing was published."""
    store = open_store(store_uri)
    found = _pointer(store, f"models/{name}/champion.json")
    return {**found, "uri": f"{store.uri}/models/{name}/versions/{found['version']}"} if found else None


def _models_kept(spec: JointSpec, tasks: Sequence[str], also: Collection[str]) -> list[str]:
    needed = {model for task in tasks for model in spec.predicts_with(task)} | set(also)
    return [model for model in spec.models if model in needed]


def _keep(weights: Path, left_out: set[str], into: Path) -> None:
    """Weights without those of some models; the same bytes each time."""
    from safetensors import safe_open

    with safe_open(weights, "numpy") as file:
        names = list(file.keys())
    kept = [name for name in names if not (name.startswith("models.") and name.split(".")[1] in left_out)]
    if len(kept) == len(names):
        into.symlink_to(weights.resolve())
        return
    from safetensors.torch import save_file

    with safe_open(weights, "pt") as file:
        save_file({name: file.get_tensor(name) for name in kept}, into)


def card(run: Json, verdict: Json, version: str, models_kept: Sequence[str]) -> str:
    """The model card in Hugging Face's format: metadata with the results, then what a reader needs to know. Asks no network."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    spec, document, results, tasks = run["spec"], JointSpec.model_validate(run["spec"]), [], []
    for task in run["tasks"]:
        said, found = spec["tasks"][task], verdict["tasks"][task]
        inputs = document.columns(task)[0]
        fitted = run["fitted"][said["data"]]
        values = {found["metric"]: found["joint"]["value"], **{metric: entry["joint"] for metric, entry in found["metrics"].items()}}
        for metric, value in values.items():
            if value is not None:
                # tasks are told apart by `dataset_config`: results on one dataset are merged otherwise
                results.append(EvalResult(
                    task_type=_task_type({fitted[column]["kind"] for column in inputs}, found["target"]), task_name=task,
                    dataset_type=spec["data"][said["data"]]["kind"], dataset_name=said["data"], dataset_config=task, dataset_split="test",
                    metric_type=metric, metric_name=f"{task} {metric}", metric_value=value,
                ))  # fmt: skip
        against = found["vs_independent"]
        tasks.append({
            "name": task, "inputs": inputs, "target": said["target"], "kind": found["target"], "metric": found["metric"],
            "joint": _estimate(found["joint"]), "independent": _estimate(found["independent"]),
            "word": against["verdict"] if against else "not compared",
        })  # fmt: skip
    data = ModelCardData(
        model_name=run["name"],
        library_name="cotrain",
        tags=["joint-training", "multi-task-learning", "safetensors"],
        eval_results=results or None,
    )
    hurt = [task["name"] for task in tasks if task["word"] == "worse"]
    made = ModelCard.from_template(
        data, template_path=str(_CARD), name=run["name"], version=version, tasks=tasks, confidence=f"{100 * verdict['confidence']:g}",
        columns=_columns(run), parameters=f"{run['parameters']:,}", seed=run["seed"], ranks=run["ranks"], device=run["device"],
        phases=", ".join(f"{phase} ({steps:,} steps)" for phase, steps in run["steps"].items()),
        datasets=[{
            "name": name, "kind": spec["data"][name]["kind"], "digest": entry["digest"][:16],
            "rows": ", ".join(f"{count:,} {split} rows" for split, count in entry["rows"].items()),
        } for name, entry in run["data"].items()],
        models=", ".join(models_kept), besides=", ".join(model for model in spec["models"] if model not in models_kept),
        hurt=f"Trained alone, a model is better at: {', '.join(hurt)}." if hurt else "",
    )  # fmt: skip
    return str(made.content).rstrip() + "\n"


def _promote(store: Store, pointer: str, base: str, version: str) -> str | None:
    """Move the champion to a version; the version that was the champion before."""
    sha256 = _sealed(store, base)
    if sha256 is None:
        raise StoreError.at(f"{store.uri}/{base}", "is not whole after it was written", "let nothing else write there, and publish again")
    replaced: str | None = None
    for attempt in range(_ATTEMPTS):
        tag = store.version(pointer)  # before it is read: what changes in between is then seen by the swap
        now = _pointer(store, pointer)
        if now and now["version"] == version and now["sha256"] == sha256:
            return replaced if attempt else version  # a swap whose answer got lost was done, or another run did it
        replaced = now["version"] if now else None
        promoted = {"version": version, "sha256": sha256, "promoted_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        if store.swap(pointer, json.dumps(promoted).encode(), tag):
            return replaced
        time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
    raise CotrainError(f"{store.uri}/{pointer}: {_ATTEMPTS} times another process moved it first")


def _pointer(store: Store, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read(key))
        return {name: str(found[name]) for name in ("version", "sha256", "promoted_at")}
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError.at(f"{store.uri}/{key}", "is not a champion", "restore or delete it, and publish again") from error


def _sealed(store: Store, base: str) -> str | None:
    """SHA-256 of the manifest of a version if every file that it lists is there, else None."""
    try:
        data = store.read(f"{base}/{MANIFEST}")
        there = set(store.list(base))
        return hashlib.sha256(data).hexdigest() if all(f"{base}/{name}" in there for name in json.loads(data)["files"]) else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def _whole(store: Store, base: str, scratch: Path) -> bool:
    """Whether a version is there with every byte its manifest promises; one that is not is written again."""
    if _sealed(store, base) is None:
        return False
    try:
        verify(Path(store.download(base, scratch)))
    except StoreError:
        return False
    return True


def _task_type(inputs: set[str], target: str) -> str:
    """The identifier that the Hugging Face hub has for tasks like this."""
    if target == "number":
        return "tabular-regression"
    if target != "category":
        return {
            "pairs": "feature-extraction",
            "tokens": "image-to-text",
            "boxes": "object-detection",
            "images": "unconditional-image-generation",
        }.get(target, "other")
    return "image-classification" if inputs == {"image"} else "text-classification" if inputs == {"text"} else "tabular-classification"


def _estimate(found: Json | None) -> str:
    if not found or found["value"] is None:
        return "–"
    bounds = f" [{found['low']:.4g}, {found['high']:.4g}]" if found.get("low") is not None and found.get("high") is not None else ""
    return f"{found['value']:.4g}{bounds}"


def _columns(run: Json) -> list[str]:
    """Source columns that the tasks read to predict."""
    spec = JointSpec.model_validate(run["spec"])
    named = [(spec.data[spec.tasks[task].data].columns[name], name) for task in run["tasks"] for name in spec.columns(task)[0]]
    return list(dict.fromkeys(column.source or name for column, name in named))
