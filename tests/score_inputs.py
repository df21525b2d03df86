"""A prepared dataset and trained models small enough to make in a test, in the documented folders (docs/architecture.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from trainer.joint import build
from trainer.results import write_manifest
from trainer.shards import ShardWriter, write_batch
from trainer.spec import JointSpec

CLASSES = ["ant", "bee", "cow"]


def document(**changes: Any) -> JointSpec:
    """A resolved document of two tasks on one trunk: a class of three, and a number in large units."""
    # where the rows come from does not matter to those who read prepared folders
    text = {
        "name": "zoo",
        "data": {"animals": {"kind": "score_inputs:raw_rows", "columns": {
            "x": {"kind": "vector", "size": 4}, "animal": {"kind": "category", "classes": CLASSES}, "weight": "number"}}},
        "models": {"trunk": {"kind": "mlp", "hidden": [16], "dropout": 0.2}},
        "tasks": {
            "animal": {"data": "animals", "model": "trunk", "input": "x", "target": "animal", "objective": "cross_entropy",
                       "metrics": ["accuracy", "f1_macro", "auroc"]},
            "weight": {"data": "animals", "model": "trunk", "input": "x", "target": "weight", "objective": "mse", "metrics": ["mae", "r2"]},
        },
        "phases": {"joint": {"steps": 1}},
        "compare": {"resamples": 200},
    }  # fmt: skip
    return JointSpec.model_validate(_merge(text, changes))


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{k: _merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in changes.items()}}


def raw_rows(rows: int, seed: int = 0, missing: float = 0.1) -> pa.RecordBatch:
    """Rows whose class and weight can be read off `x`, but for noise; some of both are missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    animal = (x[:, :3] + rng.normal(0, 0.5, (rows, 3))).argmax(1)
    weight = 5000 + 1000 * (x[:, 0] - x[:, 3]) + rng.normal(0, 300, rows)
    gone = rng.random((2, rows)) < missing
    return pa.record_batch({
        "x": pa.array(list(x), pa.list_(pa.float32())),
        "animal": pa.array([None if g else CLASSES[k] for k, g in zip(animal, gone[0], strict=True)], pa.string()),
        "weight": pa.array(weight, mask=gone[1]),
    })  # fmt: skip


def prepared(folder: Path, spec: JointSpec, test: pa.RecordBatch, digest: str = "data-1") -> Path:
    """A folder of `results/data`, its columns fitted on 400 training rows and its test split in several shards."""
    folder.mkdir(parents=True)
    columns, train = spec.data["animals"].columns, raw_rows(400, seed=99)
    fitted = {name: column.finish(column.observe(train[name], {})) for name, column in columns.items()}
    (folder / "fitted.json").write_text(json.dumps(fitted))
    writer = ShardWriter(folder, "test", fitted, 1 << 12)
    if len(test):
        writer.add({name: column.encode(test[name], fitted[name]) for name, column in columns.items()})
    writer.close()
    write_batch(folder / "raw-test-00000.arrow", test)
    write_manifest(folder, "data", "key-of-data", digest=digest, rows={"train": 400, "test": len(test)},
                   shards={"test": writer.paths, "raw-test": ["raw-test-00000.arrow"]})  # fmt: skip
    return folder


def trained(
    folder: Path, spec: JointSpec, data: Path, tasks: Sequence[str] = ("animal", "weight"), seed: int = 0, steps: int = 60,
    role: str = "joint",
) -> Path:  # fmt: skip
    """A folder of `results/train`: a model that took some steps on the training rows."""
    folder.mkdir(parents=True)
    fitted = {"animals": json.loads((data / "fitted.json").read_text())}
    columns, train = spec.data["animals"].columns, raw_rows(400, seed=99, missing=0)
    known = fitted["animals"]
    tensors = {name: column.tensor(column.encode(train[name], known[name]), known[name]) for name, column in columns.items()}
    module = build(spec, fitted, tasks, seed=seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    rows = np.random.default_rng(seed)
    for _ in range(steps):
        some = torch.tensor(rows.integers(0, 400, 64))
        batch = {name: tensor[some] for name, tensor in tensors.items()}
        optimizer.zero_grad()
        (module(list(tasks), {"animals": (batch, batch)}).sum() / 64).backward()
        optimizer.step()
    save_file(module.state_dict(), folder / "model.safetensors")
    key = f"{role}-{'-'.join(tasks)}-{seed}-{steps}"
    result = {
        "key": key, "name": spec.name, "role": role, "task": tasks[0] if role == "independent" else None, "seed": seed,
        "spec": spec.to_json(),
        "data": {"animals": {"key": "key-of-data", "digest": json.loads((data / "manifest.json").read_text())["digest"]}}, "fitted": fitted,
        "tasks": list(tasks), "ranks": 2, "device": "cpu", "parameters": sum(p.numel() for p in module.parameters()), "flops_per_row": 1000,
        "seconds": {"start": 1.0, "train": 4.0 + seed, "validate": 0.5, "checkpoint": 0.1, "total": 6.0},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    write_manifest(folder, "train", key)
    return folder
