"""From a document to what is done: steps, schedules, DeepSpeed's configuration, baselines, memory. Pure; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trainer.sources import code_of
from trainer.spec import JointSpec, Train, digest


@dataclass(frozen=True)
class PhasePlan:
    """What one phase does, the same on every rank.

    T tasks, in the order of the document.
    """

    name: str
    tasks: tuple[str, ...]
    data: tuple[str, ...]
    steps: int
    present_ST: np.ndarray
    """Which tasks each step sees: bool `[steps, T]`."""

    @cached_property
    def present_SD(self) -> np.ndarray:
        """Which datasets each step draws from: bool `[steps, D]`."""
        names = list(dict.fromkeys(self.data))
        columns = [np.array([d == name for d in self.data]) for name in names]
        return np.stack([self.present_ST[:, c].any(1) for c in columns], 1)

    @cached_property
    def drawn_SD(self) -> np.ndarray:
        """How often each dataset was drawn before a step: int64 `[steps + 1, D]`."""
        zero = np.zeros((1, self.present_SD.shape[1]), dtype=np.int64)
        return np.concatenate([zero, self.present_SD.cumsum(0, dtype=np.int64)])

    @property
    def datasets(self) -> list[str]:
        """Dataset names in the order of the columns of `present_SD`."""
        return list(dict.fromkeys(self.data))

    def validate_every(self, train: Train) -> int:
        """Steps between validations."""
        return train.validate_every or max(1, self.steps // 20)


def plan_phase(spec: JointSpec, phase: str, rows: Mapping[str, int], seed: int) -> PhasePlan:
    """The plan of a phase, given the training rows of each dataset."""
    part = spec.phases[phase]
    tasks = spec.phase_tasks(phase)
    data = [spec.tasks[task].data for task in tasks]
    rows_T = np.array([rows[name] for name in data], dtype=np.int64)
    steps = spec.rounds * (part.steps or part.mixer.steps(rows_T, data, part.epochs or 1.0, spec.train.batch))
    key = int(digest("mixer", seed, phase)[:15], 16)
    return PhasePlan(phase, tuple(tasks), tuple(data), steps, part.mixer.schedule(rows_T, data, steps, key))


def task_steps(spec: JointSpec, task: str, rows: Mapping[str, int], seed: int) -> dict[str, int]:
    """Optimiser steps that train `task`, by phase."""
    found = {}
    for phase in spec.phases:
        if task in spec.phase_tasks(phase):
            plan = plan_phase(spec, phase, rows, seed)
            found[phase] = int(plan.present_ST[:, plan.tasks.index(task)].sum())
    return found


def independent(spec: JointSpec, task: str, rows: Mapping[str, int], seed: int) -> JointSpec:
    """The document that trains `task` alone: same models, same data, as many steps as the joint run gives it.

    A task that reads others, as an ensemble does, brings them along: they are trained as they would be without it.
    """
    before = _before(spec, task)
    if before:
        return _in_turn(spec, task, before, rows, seed)
    chosen = spec.reads(task)
    models = spec.models_of(task)
    document = spec.to_json()
    tasks = {}
    for name in chosen:
        objective = spec.tasks[name].objective
        said = {"objective": objective.alone().model_dump(mode="json", by_alias=True)} if objective else {}
        tasks[name] = document["tasks"][name] | said
    data = {spec.tasks[name].data for name in chosen}
    phases = {
        name: spec.phases[name].model_dump(mode="json")
        | {
            "tasks": chosen,
            "epochs": None,
            "steps": max(1, steps),
            "mixer": {"kind": "all"},
            "balancer": {"kind": "equal"},
            "train": list(models),
            "syncs": [sync for sync in document["phases"][name]["syncs"] if sync["of"] in models],
        }
        for name, steps in task_steps(spec, task, rows, seed).items()
    }
    document |= {
        "data": {name: dataset for name, dataset in document["data"].items() if name in data},
        "models": {name: model for name, model in document["models"].items() if name in models},
        "tasks": tasks,
        "phases": phases,
        "rounds": 1,
        "compare": {"independent": False},
        "observe": {},
    }
    return JointSpec.model_validate(document)


def _before(spec: JointSpec, task: str) -> list[str]:
    """Tasks that train what `task` uses and does not train itself, such as the critic of a generator."""
    objective = spec.tasks[task].objective
    if objective is None or not objective.wide:
        return []
    others = spec.models_of(task).keys() - set(objective.trains()) - {spec.tasks[read].model for read in spec.reads(task)}
    found = []
    for name, said in spec.tasks.items():
        trained = {said.model} if said.objective is None or not said.objective.wide else set(said.objective.trains())
        if name != task and trained & others:
            found.append(name)
    return found


def _in_turn(spec: JointSpec, task: str, before: Sequence[str], rows: Mapping[str, int], seed: int) -> JointSpec:
    """The document that trains what `task` needs first, each phase to its end, and `task` at last, on what is then frozen."""
    document = spec.to_json()
    chosen = [name for name in spec.tasks if name in {*before, *spec.reads(task)}]
    models = {model for name in chosen for model in spec.models_of(name)}
    phases: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for name in spec.phases:
        tasks = [other for other in spec.phase_tasks(name) if other in chosen]
        if not tasks:
            continue
        steps = {other: task_steps(spec, other, rows, seed)[name] for other in tasks}
        part = document["phases"][name]
        made = part | {
            "tasks": tasks,
            "epochs": None,
            "steps": max(1, *steps.values()),
            "mixer": {"kind": "all"},
            "balancer": {"kind": "equal"},
            "train": None if part["train"] is None else [model for model in part["train"] if model in models],
            "syncs": [sync for sync in part["syncs"] if sync["of"] in models],
        }
        (last if task in tasks else phases)[name] = made
    document |= {
        "data": {name: part for name, part in document["data"].items() if name in {spec.tasks[other].data for other in chosen}},
        "models": {name: part for name, part in document["models"].items() if name in models},
        "tasks": {name: document["tasks"][name] for name in chosen},
        "phases": phases | last,
        "rounds": 1,
        "compare": {"independent": False},
        "observe": {},
    }
    return JointSpec.model_validate(document)


def train_relevant(spec: JointSpec) -> dict[str, Any]:
    """The part of a document that a trained model depends on, and the user's own code in it: what a training key is made from."""
    document = spec.to_json()
    train = {name: value for name, value in document["train"].items() if name != "checkpoint"}
    # an elastic run may end on fewer ranks than it began with: it must not be taken for one that had all of them
    elastic = [spec.cluster.min_nodes] if spec.cluster.elastic else []
    return {
        "models": document["models"],
        # as lists, for their order matters and that of a mapping's keys is not part of a digest
        "tasks": [(name, {part: value for part, value in task.items() if part != "metrics"}) for name, task in document["tasks"].items()],
        "judged": [name for name, task in spec.tasks.items() if task.judged],
        "phases": list(document["phases"].items()),
        "rounds": spec.rounds,
        "train": train,
        "ranks": [spec.cluster.nodes, spec.cluster.processes_per_node, spec.cluster.gpus_per_node, *elastic],
        # datasets count by what comes of them
        "code": code_of({name: document[name] for name in ("models", "tasks", "phases", "train")}),
    }


def uses_deepspeed(train: Train, ranks: int, device: str) -> bool:
    """Whether there is anything for DeepSpeed to do: ranks to reduce over, low precision, or offloading."""
    offloads = train.zero.offload_optimizer != "none" or train.zero.offload_param != "none"
    return ranks > 1 or offloads or precision(train, device) != "fp32"


def precision(train: Train, device: str) -> str:
    """The precision that `auto` stands for on a device."""
    if train.precision != "auto":
        return train.precision
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "fp32"


def deepspeed_config(train: Train, ranks: int, device: str) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from the document; nobody writes one by hand.

    In low precision DeepSpeed keeps its float32 master copies in a sharded optimiser, so stage 0 becomes 1.
    """
    kind = precision(train, device)
    stage = max(train.zero.stage, 0 if kind == "fp32" else 1)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": train.zero.overlap_comm,
        "reduce_bucket_size": train.zero.reduce_bucket_elements,
        "allgather_bucket_size": train.zero.allgather_bucket_elements,
    }
    if stage == 3:
        del zero["allgather_bucket_size"]
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if train.zero.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": train.zero.offload_optimizer}
    if train.zero.offload_param != "none":
        zero["offload_param"] = {"device": train.zero.offload_param}
    return {
        "train_batch_size": (train.batch // (ranks * train.accumulate)) * ranks * train.accumulate,
        "train_micro_batch_size_per_gpu": train.batch // (ranks * train.accumulate),
        "gradient_accumulation_steps": train.accumulate,
        # written always: left out, DeepSpeed clips at 1.0 without a word
        "gradient_clipping": train.clip or 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": kind == "bf16"},
        "fp16": {"enabled": kind == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def model_state_bytes(parameters: int, train: Train, ranks: int, optimizer_states: int, device: str) -> dict[str, int]:
    """Bytes per rank that parameters, gradients and optimiser state take, activations not counted.

    Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC 2020, section 3.
    """
    kind = precision(train, device)
    low = 4 if kind == "fp32" else 2
    stage = deepspeed_config(train, ranks, device)["zero_optimization"]["stage"] if uses_deepspeed(train, ranks, device) else 0
    # a sharded or low-precision optimiser works on a float32 copy of its own
    master = 4 if stage else 0
    return {
        "parameters": parameters * low // (ranks if stage == 3 else 1),
        "gradients": parameters * low // (ranks if stage >= 2 else 1),
        "optimizer": parameters * (master + 4 * optimizer_states) // (ranks if stage >= 1 else 1),
    }


def learning_rate(spec: JointSpec, peak: float, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0) of a phase: a linear warm-up, then the schedule's shape down to its floor.

    Source: cosine as in Loshchilov & Hutter, SGDR, ICLR 2017.
    """
    schedule = spec.train.schedule
    warmup = int(schedule.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule.kind]
    return peak * (schedule.floor + (1 - schedule.floor) * shape)
