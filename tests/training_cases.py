"""The documents that are trained on several ranks, and what is known of each of those runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from training_inputs import TASKS, Trained, ask, copy_data, document, on_ranks
from training_rank import train_job

from trainer.spec import JointSpec
from trainer.world import World

STAGES = [0, 1, 2, 3]
OFFLOADS = [1, 2, 3]
SECOND_STOP = ["later", 5]
CUT = [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")]


def cases() -> dict[str, JointSpec]:
    """The documents, by label."""
    found: dict[str, JointSpec] = {}
    static = {"kind": "static", "weights": {"plant": 0.5, "height": 2.0, "hard": 1.25}}
    for stage in STAGES:
        found[f"sums-{stage}-1"] = document(phases={"joint": {"steps": 10, "balancer": "uncertainty"}}, train={"zero": stage})
        found[f"sums-{stage}-4"] = document(phases={"joint": {"steps": 10, "balancer": static}}, train={"zero": stage, "accumulate": 4})
        found[f"absent-{stage}"] = document(phases=_turns(), train={"zero": stage})
        found[f"resume-fp32-{stage}"] = _eventful(stage, "fp32")
        found[f"frozen-fp32-{stage}"] = _frozen(stage, "fp32")
        for clip in (0.05, None):
            found[f"clip-{clip}-{stage}"] = document(train={"zero": stage, "clip": clip, "optimizer": {"kind": "sgd", "lr": 0.2}})
    for stage in OFFLOADS:
        zero = {"stage": stage, "offload_optimizer": "cpu"}
        found[f"absent-{stage}-offload"] = document(phases=_turns(), train={"zero": zero})
        found[f"resume-fp32-{stage}-offload"] = _eventful(zero, "fp32")
        found[f"resume-bf16-{stage}"] = _eventful(stage, "bf16")
        found[f"frozen-bf16-{stage}"] = _frozen(stage, "bf16")
    found["resume-fp32-3-offload-both"] = _eventful({"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}, "fp32")
    for zero, precision in CUT:
        found[f"cut-{zero}-{precision}"] = _long(zero, precision)
    mixers: list[Any] = ["all", "proportional", {"kind": "temperature", "over": "tasks"}, "round_robin"]
    phases = {mixer if isinstance(mixer, str) else mixer["kind"]: {"steps": 14, "mixer": mixer} for mixer in mixers}
    found["order"] = document(phases=phases, train={"zero": 1, "accumulate": 2})
    found["normed"] = document(models={"trunk": {"kind": "training_inputs:normed"}}, phases={"later": {"steps": 10}}, train={"zero": 1})
    note = {"data": "plants", "model": "reader", "input": "note", "target": "plant"}
    reader = {"kind": "text_transformer", "width": 8, "layers": 2, "heads": 2, "dropout": 0.0}
    for stage in (0, 3):
        found[f"text-{stage}"] = document(
            tasks={"note": note}, models={"reader": reader}, train={"zero": stage, "optimizer": {"kind": "sgd", "lr": 0.1}}
        )
    for stage in STAGES:
        found[f"boxes-{stage}"] = _scenes(stage)
    return found


def _scenes(stage: int) -> JointSpec:
    """A detector and a classifier on one map, whose gradients a balancer weighs there."""
    seen = {"data": "scenes", "model": "eye", "input": "image"}
    things = {"kind": "detection", "width": 4}
    return document(
        data={"scenes": {"kind": "digit_scenes", "scenes": 90, "writings": 15, "split": {"valid": 0.2, "test": 0.1}}},
        models={"eye": {"kind": "conv_map", "channels": [4, 4, 8, 8], "stride": 8, "groups": 2}},
        tasks={"things": {**seen, "target": "boxes", "objective": things}, "largest": {**seen, "target": "largest", "hidden": [5]}},
        phases={"joint": {"steps": 6, "balancer": "pcgrad"}},
        train={"zero": stage, "batch": 9, "optimizer": {"kind": "sgd", "lr": 0.1}},
    )


def _turns() -> dict[str, Any]:
    return {"joint": {"steps": 12, "mixer": {"kind": "round_robin", "over": "tasks"}, "balancer": "uncertainty"}}


def _eventful(zero: Any, precision: str) -> JointSpec:
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7], "dropout": 0.2}},
        phases={
            "first": {"tasks": ["plant"], "steps": 6, "optimizer": {"kind": "sgd", "lr": 0.1}},
            "later": {"steps": 12, "mixer": {"kind": "round_robin", "over": "tasks"}, "balancer": "uncertainty"},
        },
        train={"zero": zero, "precision": precision, "accumulate": 2, "early_stop": {"patience": 3}, "validate_every": 2},
    )


def _long(zero: int, precision: str) -> JointSpec:
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7], "dropout": 0.2}},
        phases={"first": {"tasks": ["plant"], "steps": 15}, "later": {"steps": 100, "mixer": "round_robin", "balancer": "uncertainty"}},
        train={"zero": zero, "precision": precision, "early_stop": {"patience": 100}, "validate_every": 10,
               "checkpoint": {"every_steps": 10, "every_minutes": None}},
        cluster={"processes_per_node": 2},
    )  # fmt: skip


def _frozen(zero: Any, precision: str) -> JointSpec:
    return document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7]}, "other": {"kind": "mlp", "hidden": [9]}},
        tasks={**TASKS, "hard": {**TASKS["hard"], "model": "other"}},
        phases={
            "heads": {"tasks": ["plant", "hard"], "train": ["other"], "steps": 5},
            "all": {"tasks": ["height"], "train": [], "steps": 4},
        },
        train={"zero": zero, "precision": precision, "optimizer": {"kind": "adamw", "lr": 0.05, "weight_decay": 0.5}},
    )


class Garden:
    """Requests by label, with their data prepared below `root`, and the folders that runs leave their results in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.specs = cases()
        self.requests = {label: ask(spec, root / "asked") for label, spec in self.specs.items()}

    def place(self, name: str) -> Path:
        """A root of its own for some runs."""
        return self.root / name if (self.root / name).exists() else copy_data(self.root / "asked", self.root / name)

    def job(self, label: str, where: str, **more: Any) -> dict[str, Any]:
        return {"label": f"{label} in {where}", "root": str(self.place(where)), "key": self.requests[label]["key"], **more}

    def trained(self, label: str, where: str) -> Trained:
        return Trained(self.root / where, self.requests[label]["key"])

    def alone(self, label: str, where: str = "one", **more: Any) -> dict[str, Any]:
        """Train (or go on with) a request in this process, as the only rank."""
        return train_job(self.job(label, where, **more), World(0, 1, 0, torch.device("cpu")))


class Ranks:
    """What was trained by a group of ranks: `said[label in where]` is what each rank returned, one entry a job."""

    def __init__(self, garden: Garden, size: int, jobs: list[dict[str, Any]], env: dict[str, str] | None = None) -> None:
        self.folder = garden.root / f"ranks-{size}"
        self.said: dict[str, list[list[dict[str, Any]]]] = {}
        found = on_ranks(size, jobs, self.folder, env)
        for number, job in enumerate(jobs):
            self.said.setdefault(job["label"], []).append([found[rank][number] for rank in range(size)])
