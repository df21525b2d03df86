"""Training results small enough to make in a test, with every kind of input column and two datasets, in the documented folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.joint import build
from trainer.results import write_manifest
from trainer.spec import JointSpec

COLOURS = ["red", "green", "blue"]
WORDS = ["a", "small", "model", "reads", "many", "kinds", "of", "columns", "and", "says", "what", "it", "sees"]


def rows_of_shop(rows: int = 60) -> Iterator[dict[str, Any]]:
    """Raw rows: a picture, a text under another name in the source, a vector; a class and a price to predict."""
    rng = np.random.default_rng(0)
    for _ in range(rows):
        yield {
            "picture": rng.integers(0, 17, (1, 4, 4)).tolist(), "review text": " ".join(rng.choice(WORDS, 6)),
            "sizes": rng.normal(10, 3, 3).tolist(), "shop": int(rng.integers(3)), "colour": str(rng.choice(COLOURS)),
            "price": float(rng.normal(500, 100)),
        }  # fmt: skip


def rows_of_digits(rows: int = 60) -> Iterator[dict[str, Any]]:
    """Raw rows of the other dataset."""
    rng = np.random.default_rng(1)
    for _ in range(rows):
        yield {"strokes": rng.normal(size=2).tolist(), "digit": int(rng.integers(10)), "even": bool(rng.integers(2))}


class Mean(nn.Module):
    """A module of the user's own over text tokens: the mean of embeddings, which padding does not change."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.out_features = nn.Embedding(vocabulary, 8, padding_idx=0), 8

    def forward(self, token_BL: Tensor) -> Tensor:
        return self.embedding(token_BL).sum(1) / (token_BL != 0).sum(1, keepdim=True).clamp_min(1)


def mean_of_embeddings(inputs: list[Mapping[str, Any]]) -> nn.Module:
    """`kind: model_inputs:mean_of_embeddings`."""
    return Mean(inputs[0]["vocab_size"])


def document() -> JointSpec:
    """A resolved document of two datasets, three models and five tasks."""
    shop = {
        "picture": {"kind": "image", "shape": [1, 4, 4], "range": [0, 16]},
        "text": {"kind": "text", "source": "review text", "max_tokens": 16, "vocab_size": 300},
        "sizes": {"kind": "vector", "size": 3}, "shop": {"kind": "category", "classes": 3},
        "colour": "category", "price": "number",
    }  # fmt: skip
    strokes = {"strokes": {"kind": "vector", "size": 2}, "digit": {"kind": "category", "classes": 10}, "even": "category"}
    said = {
        "colour": {"data": "shop", "model": "look", "input": ["picture", "sizes", "shop"], "target": "colour"},
        "price": {"data": "shop", "model": "look", "input": ["picture", "sizes", "shop"], "target": "price"},
        "mood": {"data": "shop", "model": "read", "input": "text", "target": "colour"},
        "digit": {"data": "digits", "model": "trace", "input": "strokes", "target": "digit"},
        "even": {"data": "digits", "model": "trace", "input": "strokes", "target": "even", "hidden": [4]},
    }
    kinds = {"price": ("mse", ["r2", "mae"])}
    tasks = {name: {**task, "objective": kinds.get(name, ("cross_entropy",))[0], "metrics": kinds.get(name, (0, ["accuracy", "f1_macro"]))[1]}
             for name, task in said.items()}  # fmt: skip
    return JointSpec.model_validate({
        "name": "shop",
        "data": {"shop": {"kind": "model_inputs:rows_of_shop", "columns": shop},
                 "digits": {"kind": "model_inputs:rows_of_digits", "columns": strokes}},
        "models": {"look": {"kind": "mlp", "hidden": [8], "dropout": 0.5}, "read": {"kind": "model_inputs:mean_of_embeddings"},
                   "trace": {"kind": "mlp", "hidden": [6]}},
        "tasks": tasks, "phases": {"joint": {"steps": 1}},
    })  # fmt: skip


def trained(folder: Path, seed: int = 0, tasks: list[str] | None = None) -> Path:
    """A folder of `results/train`. Its weights are as they were initialised: what is asked of them here is to be the same again."""
    folder.mkdir(parents=True)
    spec, fitted = document(), {}
    for name, rows in {"shop": [*rows_of_shop()], "digits": [*rows_of_digits()]}.items():
        columns = spec.data[name].columns
        raw = {column: pa.array([row[part.source or column] for row in rows]) for column, part in columns.items()}
        fitted[name] = {column: part.finish(part.observe(raw[column], {})) for column, part in columns.items()}
    module = build(spec, fitted, tasks, seed=seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # so that predictions differ between rows
    save_file(module.state_dict(), folder / "model.safetensors")
    counts = {"train": 42, "valid": 9, "test": 9}
    result = {
        "key": f"key-{seed}", "name": spec.name, "role": "joint", "task": None, "seed": seed, "spec": spec.to_json(),
        "data": {name: {"key": f"data-{name}", "digest": "d" * 64, "rows": counts} for name in spec.data}, "fitted": fitted,
        "tasks": tasks or list(spec.tasks), "ranks": 2, "device": "cpu",
        "parameters": sum(weight.numel() for weight in module.parameters()), "flops_per_row": None,
        "steps": {"joint": 500}, "steps_planned": {"joint": 600}, "task_steps": {}, "samples": 32000,
        "seconds": {"start": 4.1, "train": 8.2, "validate": 0.4, "checkpoint": 0.1, "total": 12.8},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "history.jsonl").write_text("")
    write_manifest(folder, "train", result["key"])
    return folder


def verdict(passed: bool = True, champion: str | None = None) -> dict[str, Any]:
    """A `verdict.json` for that document."""
    tasks = {}
    for i, (name, task) in enumerate(document().tasks.items()):
        metric, other = (part.kind for part in task.metrics or [])
        tasks[name] = {
            "metric": metric, "higher_is_better": True, "target": "number" if name == "price" else "category", "rows": 9,
            "joint": {"value": 0.9 - i / 100, "low": 0.8, "high": 0.95, "seeds": [0.9]},
            "independent": {"value": 0.88, "low": 0.7, "high": 0.9, "seeds": [0.88]} if i else None, "champion": None,
            "vs_independent": {"difference": 0.02, "low": -0.1, "high": 0.1, "verdict": "worse" if i == 2 else "same"} if i else None,
            "vs_champion": None, "metrics": {other: {"higher_is_better": True, "joint": None if i == 1 else 0.5, "independent": None}},
        }  # fmt: skip
    checks = [{"name": "worst_drop", "task": "mood", "passed": passed, "found": -0.1, "wanted": ">= -0.01", "says": "mood is 0.1 worse"}]
    return {"name": "shop", "confidence": 0.95, "seeds": 1, "tasks": tasks, "helped": 0, "hurt": 1, "cost": {}, "champion": champion,
            "gate": {"passed": passed, "checks": checks}}  # fmt: skip
