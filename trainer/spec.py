"""The document: one JointSpec says which models, data and tasks there are and how they are trained together."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from trainer import parts
from trainer.catalog import parser

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
DatasetField = Annotated[SerializeAsAny[parts.Dataset], BeforeValidator(parser("dataset"))]
ModelField = Annotated[SerializeAsAny[parts.Model], BeforeValidator(parser("model"))]
ObjectiveField = Annotated[SerializeAsAny[parts.Objective], BeforeValidator(parser("objective"))]
OptimizerField = Annotated[SerializeAsAny[parts.Optimizer], BeforeValidator(parser("optimizer"))]
BalancerField = Annotated[SerializeAsAny[parts.Balancer], BeforeValidator(parser("balancer"))]
MixerField = Annotated[SerializeAsAny[parts.Mixer], BeforeValidator(parser("mixer"))]
SyncField = Annotated[SerializeAsAny[parts.Sync], BeforeValidator(parser("sync"))]
MetricField = Annotated[SerializeAsAny[parts.Metric], BeforeValidator(parser("metric"))]


class Section(BaseModel):
    """A frozen, strict part of the document without a kind of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Task(Section):
    """One thing to learn: from which columns, with which model, towards which target."""

    data: str = Field(description="Dataset, by name.")
    model: str | None = Field(
        None, description="Model whose representation the task's head stands on, by name. Objectives that name models themselves need none."
    )
    input: str | Annotated[list[str], Field(min_length=1)] | None = Field(None, description="Column or columns that the model sees.")
    target: str | None = Field(None, description="Column to predict. Some objectives need none.")
    objective: ObjectiveField | None = Field(None, description="Default: cross_entropy for a category, mse for a number.")
    metrics: list[MetricField] | None = Field(
        None,
        description="The first is the primary one; []: the task helps others and is not judged. "
        "Default: accuracy, f1_macro for a category; r2, mae for a number; what the objective says for others.",
    )
    hidden: list[Annotated[int, Field(ge=1)]] = Field([], description="Widths of hidden layers in the task's head; none: one linear layer.")

    @property
    def inputs(self) -> list[str]:
        """The input columns, always as a list."""
        return [self.input] if isinstance(self.input, str) else list(self.input or ())

    @property
    def judged(self) -> bool:
        """Whether it is evaluated, compared and predicted; of a resolved document."""
        return self.metrics != []


class Phase(Section):
    """A stretch of training: which tasks, how long, mixed and balanced how."""

    tasks: list[str] | None = Field(None, min_length=1, description="Tasks by name. Default: all.")
    epochs: float | None = Field(None, gt=0, le=1e6, description="Passes over the training rows (see the mixer). Give this or `steps`.")
    steps: int | None = Field(None, ge=1, le=10**9, description="Optimiser steps. Give this or `epochs`.")
    mixer: MixerField = Field("all", description="Which tasks a step sees.")  # type: ignore[assignment]
    balancer: BalancerField = Field("equal", description="How task losses are weighed.")  # type: ignore[assignment]
    train: list[str] | None = Field(
        None, description="Models that learn, the others are frozen; []: heads alone. Default: all that the tasks use."
    )
    optimizer: OptimizerField | None = Field(None, description="Instead of `train.optimizer`.")
    syncs: list[SyncField] = Field([], description="What is kept of parameters beside the optimiser, after each step.")


class Schedule(Section):
    """Learning rate over the steps of a phase, as a factor of the optimiser's `lr`."""

    kind: Literal["constant", "cosine", "linear"] = Field("cosine", description="Shape after the warm-up.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps that ramp up from 0.")
    floor: float = Field(0.0, ge=0, le=1, description="Factor that it goes down to.")


class Zero(Section):
    """What DeepSpeed shards across ranks, and where it keeps it."""

    stage: Literal[0, 1, 2, 3] = Field(0, description="0 nothing, 1 optimiser state, 2 and gradients, 3 and parameters.")
    offload_optimizer: Literal["none", "cpu"] = Field("none", description="Needs stage 1, 2 or 3.")
    offload_param: Literal["none", "cpu"] = Field("none", description="Needs stage 3.")
    overlap_comm: bool = Field(False, description="Reduce gradients while the backward pass goes on.")
    reduce_bucket_elements: int = Field(500_000_000, ge=1, description="Elements reduced at a time.")
    allgather_bucket_elements: int = Field(500_000_000, ge=1, description="Elements gathered at a time.")


class EarlyStop(Section):
    """Stop a phase when validation no longer improves; the best parameters are kept."""

    patience: int = Field(5, ge=1, description="Validations without improvement.")
    min_delta: float = Field(1e-3, ge=0, description="Improvement that counts, as a share of the first validation loss.")


class Checkpoint(Section):
    """When the whole state of training is saved."""

    every_steps: int | None = Field(None, ge=1, description="Optimiser steps between checkpoints.")
    every_minutes: float | None = Field(10.0, gt=0, description="Minutes between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")


class Train(Section):
    """How optimisation is done, the same in every phase."""

    optimizer: OptimizerField = Field("adamw", description="Optimiser.")  # type: ignore[assignment]
    schedule: Schedule = Field(default_factory=Schedule, description="Learning-rate schedule.")
    batch: int = Field(64, ge=1, le=10**7, description="Rows of each dataset a step sees, over all ranks and micro-batches.")
    accumulate: int = Field(1, ge=1, le=10**6, description="Micro-batches per optimiser step.")
    zero: Annotated[Zero, BeforeValidator(lambda v: {"stage": v} if isinstance(v, int) and not isinstance(v, bool) else v)] = Field(
        default_factory=Zero, description="ZeRO stage, or its options."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("fp32", description="auto: bf16 where the GPU has it, else fp32.")
    clip: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; null: no clipping.")
    early_stop: EarlyStop | None = Field(None, description="Null: train all steps and keep the last parameters.")
    validate_every: int | None = Field(None, ge=1, description="Steps between validations. Default: 20 times a phase.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="When state is saved.")


class Gate(Section):
    """What must hold before anything is published."""

    worst_drop: float | None = Field(None, ge=0, description="No task's primary metric may be worse than independent training by more.")
    beat_champion: list[str] = Field([], description="Tasks that must not be worse than the promoted model; if there is none, this passes.")


class Compare(Section):
    """What joint training is judged against."""

    independent: bool = Field(True, description="Train each task alone, with the same model and budget, to compare with.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the intervals.")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of the test rows.")
    gate: Gate = Field(default_factory=Gate, description="Conditions for publishing.")


class Publish(Section):
    """Where a model that passed goes."""

    store: str | None = Field(None, description="`file://`, a path or `s3://bucket/prefix`. Default: where the run keeps its results.")
    models: list[str] = Field([], description="Models published besides those that predictions need, such as a generator's critic.")


class Observe(Section):
    """What can be watched while it trains."""

    port: int | None = Field(None, ge=0, le=65535, description="Port on rank 0 where Prometheus metrics are served; 0: any; null: none.")
    every_s: float = Field(2.0, gt=0, description="Seconds between progress events.")


class Toleration(Section):
    """A taint of machines that training may run on all the same."""

    key: str | None = Field(None, description="Taint; null: all of them.")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Whether the taint's value has to be `value`.")
    value: str | None = Field(None, description="Value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Effect of the taint; null: any.")


class Cluster(Section):
    """How many ranks there are and where. Only the ranks are part of what a training key is made from."""

    nodes: int = Field(1, ge=1, le=100_000, description="Machines.")
    min_nodes: int | None = Field(None, ge=1, description="Go on with as few machines as this when some are lost; null: all are needed.")
    processes_per_node: int = Field(2, ge=1, le=1024, description="Ranks per machine where there are no GPUs.")
    gpus_per_node: int = Field(0, ge=0, le=1024, description="GPUs, and so ranks, per machine; 0: train on CPUs.")
    launcher: Literal["local", "trainjob", "job"] | None = Field(
        None,
        description="local: processes of this machine; trainjob: Kubeflow Trainer; job: a plain Kubernetes Job. "
        "Null: what COTRAIN_LAUNCHER says, else local.",
    )
    cpus_per_node: float | None = Field(None, gt=0, description="CPUs that a pod requests; null: what the namespace gives.")
    memory_gib_per_node: float | None = Field(None, gt=0, description="Memory of a pod, request and limit; null: what the namespace gives.")
    shm_gib: float = Field(2.0, gt=0, description="Size of /dev/shm, which ranks of a pod exchange through; it counts as memory.")
    queue: str | None = Field(None, description="Kueue queue (a LocalQueue). The time spent there is not run time.")
    priority: str | None = Field(None, description="Kueue priority class (a WorkloadPriorityClass), with `queue`.")
    node_selector: dict[str, str] = Field({}, description="Labels that machines must have.")
    tolerations: list[Toleration] = Field([], description="Taints of machines that don't matter.")
    max_restarts: int = Field(
        3, ge=0, le=1000, description="How often it starts again after a failure; preemption is none. A TrainJob's runtime may allow less."
    )
    deadline_hours: float = Field(
        168.0, gt=0, description="Hours it may run, time in queues or without room not counted; then it is stopped."
    )
    peer_timeout_s: float = Field(
        600.0, ge=1, description="Seconds that ranks wait for one another: after that a node that can't be reached counts as lost."
    )
    grace_s: int = Field(600, ge=1, description="Seconds to save the state in when it is asked to stop.")

    @property
    def elastic(self) -> bool:
        """Whether training goes on when a node is lost."""
        return self.min_nodes is not None and self.min_nodes < self.nodes

    @property
    def ranks(self) -> int:
        """World size; the largest, where nodes may be lost."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)


class JointSpec(Section):
    """Which models, data and tasks there are, and how they are trained together."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", description="Name of the job and of what it publishes.")
    seed: int = Field(0, ge=0, lt=2**31, description="Everything random derives from it.")
    seeds: int = Field(1, ge=1, le=100, description="Repetitions with other seeds, for intervals that include training noise.")
    data: dict[Name, DatasetField] = Field(min_length=1, description="Datasets by name.")
    models: dict[Name, ModelField] = Field(min_length=1, description="Models by name.")
    tasks: dict[Name, Task] = Field(min_length=1, description="Tasks by name.")
    phases: dict[Name, Phase] = Field(min_length=1, description="Phases by name, trained in this order.")
    rounds: int = Field(
        1,
        ge=1,
        le=10**9,
        description="Times that the list of phases is gone through; lengths of phases are per round, optimisers last.",
    )
    train: Train = Field(default_factory=Train, description="Optimisation.")
    compare: Compare = Field(default_factory=Compare, description="Judgement.")
    publish: Publish = Field(default_factory=Publish, description="Promotion.")
    observe: Observe = Field(default_factory=Observe, description="Watching.")
    cluster: Cluster = Field(default_factory=Cluster, description="Ranks.")

    def phase_tasks(self, phase: str) -> list[str]:
        """Task names of a phase, in the order of the document's `tasks`."""
        chosen = self.phases[phase].tasks
        return [task for task in self.tasks if chosen is None or task in chosen]

    @property
    def judged_tasks(self) -> list[str]:
        """Tasks that are evaluated, compared and predicted; of a resolved document."""
        return [name for name, task in self.tasks.items() if task.judged]

    def kept(self, parameter: str) -> bool:
        """Whether a parameter (`models.<model>...` or `heads.<task>...`) is needed to predict what is judged."""
        family, part = parameter.split(".")[:2]
        used = [self.models_of(task) if family == "models" else self.reads(task) for task in self.judged_tasks]
        return any(part in names for names in used)

    def judged_as(self, task: str) -> str:
        """What the predictions of a task are: the kind of its target column, or what its objective says."""
        said = self.tasks[task]
        if said.objective is not None and said.objective.judges is not None:
            return said.objective.judges
        return self.data[said.data].columns[said.target].kind  # type: ignore[index]

    def reads(self, task: str) -> list[str]:
        """A task and those whose outputs it reads, directly or through others, in the order of the document."""
        found: dict[str, None] = {task: None}
        queue = [task]
        while queue:
            objective = self.tasks[queue.pop()].objective
            for other in objective.reads() if objective else ():
                if other not in found and other in self.tasks:
                    found[other] = None
                    queue.append(other)
        return [name for name in self.tasks if name in found]

    def columns(self, task: str) -> tuple[list[str], list[str]]:
        """Columns of its dataset that a task needs: to predict, and to be trained besides."""
        said = self.tasks[task]
        needed = dict.fromkeys(said.inputs)
        if said.objective:
            needed |= dict.fromkeys(c for columns in said.objective.models().values() for c in columns if c != parts.TARGET)
            needed |= dict.fromkeys(said.objective.also())
        needed |= dict.fromkeys(c for other in self.reads(task) for c in self.tasks[other].inputs)
        return [c for c in needed if c != said.target], [said.target] if said.target else []

    def models_of(self, task: str) -> dict[str, list[str]]:
        """Models that a task uses, also through tasks it reads, each with the columns it gets."""
        found: dict[str, list[str]] = {}
        for other in self.reads(task):
            said = self.tasks[other]
            if said.model is not None:
                found.setdefault(said.model, said.inputs)
            for model, columns in (said.objective.models() if said.objective else {}).items():
                found.setdefault(model, [said.target if c == parts.TARGET else c for c in columns])  # type: ignore[misc]
        return found

    def predicts_with(self, task: str) -> set[str]:
        """Those of `models_of` a task that a prediction calls."""
        read = [self.tasks[other] for other in self.reads(task)]
        return {said.model for said in read if said.model is not None} | {
            model for said in read if said.objective for model in said.objective.predicts_with()
        }

    def learning(self, phase: str) -> tuple[set[str], set[str]]:
        """Models and heads (by task) that learn in a phase."""
        chosen = self.phase_tasks(phase)
        taught = [other for task in chosen if (o := self.tasks[task].objective) for other in o.teaches()]
        heads = {*chosen, *taught}
        learn = self.phases[phase].train
        if learn is not None:
            return set(learn), heads
        models = {self.tasks[task].model for task in heads} - {None}
        models |= {model for task in chosen if (o := self.tasks[task].objective) for model in o.trains()}
        return models, heads  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """The resolved document: every default written out, ready for `JointSpec.model_validate`."""
        return self.model_dump(mode="json", by_alias=True)


def digest(*things: Any) -> str:
    """SHA-256 (hex) of JSON values, independent of the order of keys."""
    text = json.dumps(things, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
