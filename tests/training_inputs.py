"""Trainings small enough for a test: two datasets with gaps in them, one trunk, a head a task; and a way to run them on several ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.check import load_spec
from trainer.prepare import prepare
from trainer.requests import joint_requests, write_request
from trainer.spec import JointSpec

TESTS = Path(__file__).parent
WORDS = ["a", "rose", "is", "a", "rose", "and", "no", "stone", "is", "a", "rose"]


def rows_of_plants(rows: int = 170) -> Iterator[dict[str, Any]]:
    """A vector and a text; which plant, missing in one row of 8, and its height, missing in 9 of 10."""
    rng = np.random.default_rng(0)
    for _ in range(rows):
        x = rng.normal(size=6)
        yield {
            "x": x.tolist(), "note": " ".join(rng.choice(WORDS, rng.integers(1, 9))),
            "plant": None if rng.random() < 1 / 8 else ["fern", "moss", "rose"][int(x[:3].argmax())],
            "height": None if rng.random() < 0.9 else float(x.sum() + 3),
        }  # fmt: skip


def rows_of_stones(rows: int = 60) -> Iterator[dict[str, Any]]:
    """The same vector of other things; whether they are hard."""
    rng = np.random.default_rng(1)
    for _ in range(rows):
        x = rng.normal(size=6)
        yield {"x": x.tolist(), "hard": bool(x[0] > x[1])}


class Normed(nn.Module):
    """A model with running statistics, which differ between ranks unless they are shared."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm, self.out_features = nn.Linear(width, 8), nn.BatchNorm1d(8), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)).relu()


def normed(inputs: list[Mapping[str, Any]]) -> nn.Module:
    """`kind: training_inputs:normed`."""
    return Normed(inputs[0]["shape"][0])


class Broken(Normed):
    """Raises in its third step on one rank."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 3 and os.environ.get("RANK") == "1":
            raise RuntimeError("the moss has eaten the fern")
        return super().forward(x)


def broken(inputs: list[Mapping[str, Any]]) -> nn.Module:
    """`kind: training_inputs:broken`."""
    return Broken(inputs[0]["shape"][0])


PLANTS = {
    "kind": "training_inputs:rows_of_plants", "split": {"valid": 0.2, "test": 0.1},
    "columns": {"x": {"kind": "vector", "size": 6}, "note": {"kind": "text", "max_tokens": 12, "vocab_size": 300},
                "plant": {"kind": "category", "classes": ["fern", "moss", "rose"]}, "height": "number"},
}  # fmt: skip
STONES = {
    "kind": "training_inputs:rows_of_stones", "split": {"valid": 0.2, "test": 0.1},
    "columns": {"x": {"kind": "vector", "size": 6}, "hard": "category"},
}  # fmt: skip
TASKS = {
    "plant": {"data": "plants", "model": "trunk", "input": "x", "target": "plant"},
    "height": {"data": "plants", "model": "trunk", "input": "x", "target": "height", "hidden": [5]},
    "hard": {"data": "stones", "model": "trunk", "input": "x", "target": "hard"},
}


def document(**changes: Any) -> JointSpec:
    """A resolved document. `changes` replace whole sections, except `train`, whose fields they replace."""
    train = {
        "batch": 25, "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}, "validate_every": 4,
        "checkpoint": {"every_steps": None, "every_minutes": None},
    } | changes.pop("train", {})  # fmt: skip
    said = {
        "name": "garden", "data": {"plants": PLANTS, "stones": STONES}, "models": {"trunk": {"kind": "mlp", "hidden": [16, 7]}},
        "tasks": TASKS, "phases": {"joint": {"steps": 10}}, "train": train, "cluster": {"processes_per_node": 1},
    } | changes  # fmt: skip
    used = {task["data"] for task in said["tasks"].values()}
    said["data"] = {name: said["data"][name] for name in said["data"] if name in used}
    return load_spec(said)


def ask(spec: JointSpec, root: Path) -> dict[str, Any]:
    """Prepare the data of a document below a root, and leave the request for its joint run there."""
    data = {}
    for name, dataset in spec.data.items():
        manifest = prepare(name, dataset, str(root)).json("manifest.json")
        data[name] = {"key": manifest["key"], "digest": manifest["digest"], "rows": manifest["rows"]}
    (request,) = joint_requests(spec, data)
    write_request(str(root), request)
    return request


class Trained:
    """A finished run: its parameters, what it said of itself, its curves."""

    def __init__(self, root: Path, key: str) -> None:
        folder = root / "results" / "train" / key
        self.params: dict[str, Tensor] = load_file(folder / "model.safetensors")
        self.result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        self.history: list[dict[str, Any]] = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]

    def losses(self, split: str = "train") -> list[dict[str, float]]:
        return [record["loss"] for record in self.history if record["split"] == split]


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value.double(), other[name].double(), atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def on_ranks(
    size: int, jobs: Sequence[Mapping[str, Any]], folder: Path, env: Mapping[str, str] | None = None, timeout_s: float = 480
) -> list[list[dict[str, Any]]]:
    """What `train_job` returned for each job, on each of `size` ranks of one process group."""
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(list(jobs)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "PYTHONPATH": path,
                           "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "COTRAIN_EVENTS": str(folder / "events.jsonl")} | dict(env or {})  # fmt: skip
    command = [sys.executable, str(TESTS / "training_rank.py"), str(folder)]
    said = [(folder / f"rank-{rank}.txt").open("w+") for rank in range(size)]
    processes = [
        subprocess.Popen(command, env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=said[r], stderr=subprocess.STDOUT)
        for r in range(size)
    ]
    try:
        late = time.monotonic() + timeout_s
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            if time.monotonic() > late:
                for process in processes:
                    process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                heard = [(folder / f"rank-{rank}.txt").read_text()[-4000:] for rank in range(size)]
                raise AssertionError(f"not done after {timeout_s} s:\n" + "\n".join(heard))
            time.sleep(0.05)
        for rank, process in enumerate(processes):
            if process.poll():
                said[rank].seek(0)
                raise AssertionError(f"rank {rank} ended with {process.returncode}:\n{said[rank].read()[-8000:]}")
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for file in said:
            file.close()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


def copy_data(root: Path, to: Path) -> Path:
    """A root of its own with the same prepared data and requests, and no results."""
    for part in ("results/data", "requests"):
        shutil.copytree(root / part, to / part, dirs_exist_ok=True)
    return to
