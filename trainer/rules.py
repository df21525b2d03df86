"""What must hold between the parts of a document, beyond what each part says of itself.

A rule yields findings from a draft: a document whose broken parts are left out. It must not blame one part
for a fault of another that is reported already, so it asks whether what it reads is sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer import references
from trainer.catalog import CATALOG, find
from trainer.errors import one_of
from trainer.parts import Balancer, Column, Dataset, Model
from trainer.places import Finding, Path, dotted, related, shown
from trainer.spec import Cluster, Compare, Phase, Publish, Task, Train

_STEPS_LOOKED_AT = 64


@dataclass(frozen=True)
class Draft:
    """What could be read of a document. None stands for a part that is broken, and reported.

    A task whose field is broken has None there. `ranks` and `cluster` are None when the cluster is not sound.
    """

    raw: Mapping[str, Any]
    tainted: frozenset[Path]
    data: Mapping[str, Dataset | None]
    models: Mapping[str, Model | None]
    tasks: Mapping[str, Task | None]
    phases: Mapping[str, Phase | None]
    train: Train | None
    compare: Compare | None
    publish: Publish | None
    ranks: int | None
    gpus: int | None
    cluster: Cluster | None

    def sound(self, *paths: Path) -> bool:
        """Whether nothing at, above or below these paths is reported already."""
        return not any(related(path, bad) for path in paths for bad in self.tainted)

    def listed(self, section: str) -> bool:
        """Whether the names of a section are known, broken parts included."""
        return (section,) not in self.tainted

    def complete(self, section: str) -> bool:
        """Whether nothing of a section is broken beyond reading."""
        return not any(path[0] == section and len(path) < 3 for path in self.tainted)

    def column_names(self, data: str) -> list[str]:
        """Columns that the document declares for a dataset, broken ones too."""
        dataset = self.data[data]
        written = self.raw["data"][data].get("columns") if isinstance(self.raw["data"][data], dict) else None
        return list(dict.fromkeys([*(dataset.columns if dataset else ()), *(written if isinstance(written, dict) else ())]))

    def column(self, task: Task, name: str) -> Column | None:
        """A column of a task's dataset; None where it is not there or broken."""
        dataset = self.data.get(task.data)
        return dataset.columns.get(name) if dataset else None

    def readable(self) -> Iterator[tuple[str, Task]]:
        """Tasks of which anything is known."""
        yield from ((name, task) for name, task in self.tasks.items() if task is not None)

    def input_path(self, task: str, position: int) -> Path:
        """Where the document names an input of a task."""
        path: Path = ("tasks", task, "input")
        return (*path, position) if isinstance(self.raw["tasks"][task].get("input"), list) else path

    def models_of(self, task: Task) -> set[str]:
        """Models that a task uses, also through tasks it reads."""
        objective = task.objective
        read = [self.tasks.get(other) for other in (objective.reads() if objective else ())]
        own = {task.model, *(other.model for other in read if other is not None)} - {None}
        return own | set(objective.models() if objective else ())  # type: ignore[return-value]

    def phase_tasks(self, phase: Phase) -> list[str]:
        """Task names of a phase; all where it names none."""
        return list(self.tasks) if phase.tasks is None else phase.tasks


Rule = Callable[[Draft], Iterator[Finding]]


def names_exist(draft: Draft) -> Iterator[Finding]:
    """Tasks name datasets, models and columns of the document."""
    for name, task in draft.readable():
        path: Path = ("tasks", name)
        if task.model is not None and task.model not in draft.models and draft.listed("models"):
            yield Finding((*path, "model"), f"no model is called {shown(task.model)}", one_of(task.model, draft.models))
        if task.data is None:
            continue
        if task.data not in draft.data:
            if draft.listed("data"):
                yield Finding((*path, "data"), f"no dataset is called {shown(task.data)}", one_of(task.data, draft.data))
            continue
        columns = draft.column_names(task.data)
        if not columns:
            continue
        missing = f"dataset '{task.data}' has no column "
        for i, column in enumerate(task.inputs if task.input is not None else []):
            if column not in columns:
                yield Finding(draft.input_path(name, i), missing + shown(column), one_of(column, columns))
        if task.target is not None and task.target not in columns:
            yield Finding((*path, "target"), missing + shown(task.target), one_of(task.target, columns))


def inputs_differ(draft: Draft) -> Iterator[Finding]:
    """A task names an input once, and does not see its target."""
    for name, task in draft.readable():
        inputs = task.inputs if task.input is not None else []
        for i, column in enumerate(inputs):
            if column in inputs[:i]:
                yield Finding(draft.input_path(name, i), f"column {shown(column)} is named twice", "name it once")
        if task.target in inputs:
            i = inputs.index(task.target)
            yield Finding(draft.input_path(name, i), f"column {shown(task.target)} is the target too", "leave it out of the inputs")


def inputs_fit_models(draft: Draft) -> Iterator[Finding]:
    """Models get as many columns, of the kinds, as they take; the same from every task."""
    first: dict[str, tuple[str, list[str]]] = {}
    for name, task in draft.readable():
        model = draft.models.get(task.model) if task.model is not None else None
        if (
            model is None
            or task.model is None
            or task.input is None
            or task.target in task.inputs
            or len(set(task.inputs)) < len(task.inputs)
        ):
            continue
        called = f"model '{task.model}' ({model.kind})"
        most = model.most_inputs
        if most is not None and len(task.inputs) > most:
            takes = f"{most} column{'s' if most > 1 else ''}"
            yield Finding(("tasks", name, "input"), f"names {len(task.inputs)} columns, and {called} takes {takes}", f"name {takes}")
            continue
        kinds = []
        for i, column_name in enumerate(task.inputs):
            column = draft.column(task, column_name)
            if column is None:
                continue
            kinds.append(column.kind)
            if model.takes is not None and column.kind not in model.takes:
                finding = f"{called} can't take column {shown(column_name)} of kind {column.kind}"
                yield Finding(draft.input_path(name, i), finding, f"name a column of kind {either(model.takes)}")
        sound = draft.sound(("tasks", name, "input")) and len(kinds) == len(task.inputs)
        if sound and all(model.takes is None or kind in model.takes for kind in kinds):
            other, wanted = first.setdefault(task.model, (name, kinds))
            if kinds != wanted:
                finding = f"gives {called} {', '.join(kinds)}, and task '{other}' gives it {', '.join(wanted)}"
                yield Finding(("tasks", name, "input"), finding, f"give it {', '.join(wanted)}, or a model of its own")


def targets_fit(draft: Draft) -> Iterator[Finding]:
    """Targets can be predicted, and objective and metrics are made for their kind."""
    plain = [found for kind in CATALOG["objective"] if not (found := find("objective", kind)).wide]
    for name, task in draft.readable():
        path: Path = ("tasks", name)
        objective = task.objective
        column = draft.column(task, task.target) if task.data is not None and task.target is not None else None
        wide = objective is not None and objective.wide
        if column is not None and (not wide or objective.takes_target is not False):  # type: ignore[union-attr]
            predicted = objective.targets if wide else frozenset().union(*(made.targets for made in plain))  # type: ignore[union-attr]
            default = ("category", "number") if objective is None and draft.sound((*path, "objective")) else None
            if column.kind not in predicted or (default and column.kind not in default):
                finding = f"column {shown(task.target)} is of kind {column.kind}, which is not predicted"
                yield Finding((*path, "target"), finding, f"name a column of kind {either(default or predicted)}")
                continue
            if objective is not None and column.kind not in objective.targets:
                finding = f"objective '{objective.kind}' is not made for {shown(task.target)}, a {column.kind}"
                yield Finding((*path, "objective"), finding, f"write {either(_made_for('objective', column.kind))}")
        kind = objective.judges if objective is not None and objective.judges is not None else column.kind if column is not None else None
        of = f"{shown(task.target)}, a {kind}" if task.target is not None else f"predictions of kind {kind}"
        for i, metric in enumerate(task.metrics or []):
            if kind == "":
                finding = f"objective '{objective.kind}' predicts nothing that metric '{metric.kind}' could judge"  # type: ignore[union-attr]
                yield Finding((*path, "metrics", i), finding, "remove metrics")
            elif kind is not None and kind not in metric.targets:
                yield Finding(
                    (*path, "metrics", i), f"metric '{metric.kind}' is not made for {of}", f"write {either(_made_for('metric', kind))}"
                )


def metrics_differ(draft: Draft) -> Iterator[Finding]:
    """A task names a metric once: scores are kept by its kind."""
    for name, task in draft.readable():
        kinds = [metric.kind for metric in task.metrics or []]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                yield Finding(("tasks", name, "metrics", i), f"metric '{kind}' is named twice", "name it once")


def phases_fit(draft: Draft) -> Iterator[Finding]:
    """Phases have one length, and name tasks, and models that those use, once each."""
    for name, phase in draft.phases.items():
        path: Path = ("phases", name)
        if phase is None:
            continue
        if draft.sound((*path, "epochs"), (*path, "steps")):
            if phase.epochs is None and phase.steps is None:
                yield Finding(path, "says neither epochs nor steps", "add epochs or steps")
            elif phase.epochs is not None and phase.steps is not None:
                yield Finding(path, f"says both epochs ({phase.epochs:g}) and steps ({phase.steps})", "remove one of them")
        for i, task in enumerate(phase.tasks or []):
            if task not in draft.tasks and draft.listed("tasks"):
                yield Finding((*path, "tasks", i), f"no task is called {shown(task)}", one_of(task, draft.tasks))
            elif task in (phase.tasks or [])[:i]:
                yield Finding((*path, "tasks", i), f"task {shown(task)} is named twice", "name it once")
        yield from _trained(draft, name, phase)
        yield from _weighed(draft, name, phase)


def _trained(draft: Draft, name: str, phase: Phase) -> Iterator[Finding]:
    path: Path = ("phases", name, "train")
    tasks = [draft.tasks.get(task) for task in draft.phase_tasks(phase)]
    used = {model for task in tasks if task is not None for model in draft.models_of(task)}
    known = (
        draft.sound(("phases", name, "tasks")) and all(task is not None for task in tasks) and used <= draft.models.keys() and bool(used)
    )
    for i, model in enumerate(phase.train or []):
        if model not in draft.models and draft.listed("models"):
            yield Finding((*path, i), f"no model is called {shown(model)}", one_of(model, draft.models))
        elif model in (phase.train or [])[:i]:
            yield Finding((*path, i), f"model {shown(model)} is named twice", "name it once")
        elif known and model not in used:
            yield Finding((*path, i), f"no task of this phase uses model {shown(model)}", one_of(model, used))


def _weighed(draft: Draft, name: str, phase: Phase) -> Iterator[Finding]:
    weights = getattr(phase.balancer, "weights", None)
    path: Path = ("phases", name, "balancer", "weights")
    if not isinstance(weights, Mapping) or not draft.sound(path, ("phases", name, "tasks")) or not draft.complete("tasks"):
        return
    tasks = draft.phase_tasks(phase)
    for task in weights:
        if task not in tasks:
            yield Finding((*path, task), f"no task of this phase is called {shown(task)}", one_of(task, tasks))
    missing = [task for task in dict.fromkeys(tasks) if task not in weights and task in draft.tasks]
    if missing:
        yield Finding(path, f"no weight for {', '.join(map(shown, missing))}", f"add a weight for {', '.join(missing)}")
    elif weights and not any(weights.values()):
        yield Finding(path, "every weight is 0", "give a task a weight above 0")


def gradients_meet(draft: Draft) -> Iterator[Finding]:
    """A balancer that weighs gradients has at least two tasks on one model that learns, in one step, and sees what it asks for."""
    for name, phase in draft.phases.items():
        path: Path = ("phases", name, "balancer")
        if phase is None or not draft.sound(path):
            continue
        balancer = phase.balancer
        yield from _asked_of_gradients(balancer, path)
        looks = balancer.needs_gram or balancer.needs_grads or balancer.probe_every is not None
        if looks and draft.sound(("phases", name, "tasks"), ("tasks",)):
            tasks = [draft.tasks.get(t) for t in draft.phase_tasks(phase)]
            # of wide objectives trainer.rules_joint says what is wrong with that
            if not any(task is not None and task.objective is not None and task.objective.wide for task in tasks):
                yield from _met(draft, phase, path)


def _asked_of_gradients(balancer: Balancer, path: Path) -> Iterator[Finding]:
    """What a balancer says of its Gramian is read by something."""
    gram = balancer.gram
    if gram is None:
        return
    if balancer.needs_grads:
        finding = f"{balancer.kind} reads the task gradients at the representation themselves, and no Gramian"
        yield Finding((*path, "gram"), finding, "leave out gram")
    elif not balancer.needs_gram and balancer.probe_every is None:
        yield Finding((*path, "gram"), f"{balancer.kind} asks for no Gramian", "leave out gram, or choose a gradient method")
    elif gram.layer is not None and gram.source == "representation":
        remedy = "leave out layer, or write source: last_layer"
        yield Finding((*path, "gram", "layer"), "the source 'representation' looks at no layer", remedy)
    elif gram.every > 1 and gram.source != "exact":
        remedy = "leave out every, or write source: exact"
        yield Finding((*path, "gram", "every"), f"the source '{gram.source}' makes no exact Gramian", remedy)
    elif gram.layer is not None and gram.point is not None:
        yield Finding((*path, "gram", "point"), f"the layer is named already: {shown(gram.layer)}", "leave out point, or layer")


def _met(draft: Draft, phase: Phase, path: Path) -> Iterator[Finding]:
    """Gradients of several tasks meet."""
    kind = phase.balancer.kind
    tasks = [task for task in (draft.tasks.get(t) for t in draft.phase_tasks(phase)) if task is not None]
    models = [task.model for task in tasks]
    shared = {model for model in models if model is not None and models.count(model) > 1}
    seen = {(task.data, task.model, tuple(task.inputs)) for task in tasks}
    if len(tasks) < 2:
        yield Finding(path, f"{kind} weighs the gradients of several tasks, and the phase has one", "write equal")
    elif not shared:
        yield Finding(path, f"{kind} weighs gradients where tasks share a model, and here none do", "write equal, or share a model")
    elif phase.train is not None and not shared & set(phase.train):
        finding = f"{kind} weighs gradients of what tasks share, and this phase trains none of it"
        yield Finding(path, finding, f"write equal, or add {' or '.join(sorted(shared))} to train")
    elif phase.balancer.needs_grads and len(seen) == len(tasks):
        finding = f"{kind} compares task gradients row by row, and no two tasks are on the same rows"
        yield Finding(path, finding, "write pcgrad, with gram: last_layer")
    elif not _together(phase, tasks):
        finding = f"{kind} weighs the gradients of one step, and mixer '{phase.mixer.kind}' gives each step one task"
        yield Finding(path, finding, "write equal, or mixer: all")


def _together(phase: Phase, tasks: Sequence[Task]) -> bool:
    """Whether any step of a phase sees two tasks, datasets being of one size."""
    rows_T = np.full(len(tasks), 1000, dtype=np.int64)
    return bool((phase.mixer.schedule(rows_T, [task.data for task in tasks], _STEPS_LOOKED_AT, 0).sum(1) > 1).any())


def all_is_used(draft: Draft) -> Iterator[Finding]:
    """Nothing is declared that no task or phase uses. Silent while a broken name may be what uses it."""
    tasks = list(draft.tasks.values())
    models = {model for task in tasks if task for model in draft.models_of(task)}
    for section, used in (("data", {task.data for task in tasks if task}), ("models", models)):
        declared: Mapping[str, Any] = getattr(draft, section)
        if draft.complete("tasks") and used <= declared.keys():
            what = {"data": "dataset", "models": "model"}[section]
            yield from (Finding((section, name), f"no task uses this {what}", "remove it") for name in declared if name not in used)
    named = {task for phase in draft.phases.values() if phase for task in draft.phase_tasks(phase)}
    if draft.complete("phases") and named <= draft.tasks.keys() and draft.sound(*(("phases", name, "tasks") for name in draft.phases)):
        yield from (Finding(("tasks", name), "no phase trains this task", "remove it") for name in draft.tasks if name not in named)


def training_is_legal(draft: Draft) -> Iterator[Finding]:
    """What DeepSpeed takes, and a row for every rank."""
    train = draft.train
    if train is None:
        return
    path: Path = ("train", "zero")
    zero, stage = train.zero, train.zero.stage
    if draft.sound(path):
        if zero.offload_optimizer != "none" and stage < 1:
            finding = f"ZeRO stage {stage} has no sharded optimiser state to move"
            yield Finding((*path, "offload_optimizer"), finding, "set train.zero.stage to 1, 2 or 3")
        if zero.offload_param != "none" and stage < 3:
            yield Finding((*path, "offload_param"), f"ZeRO stage {stage} has no sharded parameters to move", "set train.zero.stage to 3")
        if zero.overlap_comm and stage < 1:
            finding = f"ZeRO stage {stage} reduces after the backward pass"
            yield Finding((*path, "overlap_comm"), finding, "set train.zero.stage to 1, 2 or 3")
    if train.precision == "fp16" and draft.gpus == 0 and draft.sound(("train", "precision")):
        yield Finding(("train", "precision"), "fp16 needs GPUs, and cluster.gpus_per_node is 0", "write bf16 or fp32")
    if draft.ranks is not None and draft.sound(("train", "batch"), ("train", "accumulate")):
        least = draft.ranks * train.accumulate
        if train.batch < least:
            steps = f" in {train.accumulate} micro-batches" if train.accumulate > 1 else ""
            finding = f"{train.batch} rows don't give each of {draft.ranks} ranks a row{steps}"
            yield Finding(("train", "batch"), finding, f"write {least} or more")


def nodes_may_be_lost(draft: Draft) -> Iterator[Finding]:
    """Training that goes on with fewer nodes has a state to go on from."""
    cluster, train = draft.cluster, draft.train
    if cluster is None or cluster.min_nodes is None:
        return
    path: Path = ("cluster", "min_nodes")
    if cluster.min_nodes > cluster.nodes:
        yield Finding(path, f"{cluster.min_nodes} is more than the {cluster.nodes} of cluster.nodes", f"write {cluster.nodes} or less")
        return
    saves = train is None or train.checkpoint.every_steps is not None or train.checkpoint.every_minutes is not None
    if cluster.elastic and not saves and draft.sound(("train", "checkpoint")):
        finding = "is less than cluster.nodes, and train.checkpoint saves nothing that the others could go on from"
        yield Finding(path, finding, "set train.checkpoint.every_minutes")


def queues_have_priorities(draft: Draft) -> Iterator[Finding]:
    """A priority is one in a queue."""
    cluster = draft.cluster
    if cluster is not None and cluster.priority is not None and cluster.queue is None:
        yield Finding(("cluster", "priority"), f"'{cluster.priority}' is a priority in a queue, and there is none", "set cluster.queue")


def comparison_fits(draft: Draft) -> Iterator[Finding]:
    """Gates ask for what is measured."""
    if draft.compare is None:
        return
    gate, path = draft.compare.gate, ("compare", "gate")
    for i, task in enumerate(gate.beat_champion):
        place: Path = (*path, "beat_champion", i)
        if task not in draft.tasks and draft.listed("tasks"):
            yield Finding(place, f"no task is called {shown(task)}", one_of(task, draft.tasks))
        elif task in gate.beat_champion[:i]:
            yield Finding(place, f"task {shown(task)} is named twice", "name it once")
    if gate.worst_drop is not None and not draft.compare.independent and draft.sound(("compare", "independent")):
        finding = "is measured against independent training, and compare.independent is false"
        yield Finding((*path, "worst_drop"), finding, "set compare.independent to true")


def stores_are_known(draft: Draft) -> Iterator[Finding]:
    """URIs are of a scheme that a store takes."""
    uris: list[tuple[Path, Any]] = [(("publish", "store"), draft.publish.store if draft.publish else None)]
    for name, dataset in draft.data.items():
        uris += [(("data", name, field), getattr(dataset, field, None)) for field in ("uri", "uris")]
    for path, value in uris:
        many = value if isinstance(value, list | tuple) else [value]
        for i, uri in enumerate(many):
            place = (*path, i) if many is value else path
            if isinstance(uri, str) and "://" in uri and uri.partition("://")[0] not in CATALOG["store"]:
                yield Finding(place, f"no store takes {shown(uri)}", one_of(uri.partition("://")[0], CATALOG["store"]))
            elif uri == "":
                yield Finding(place, "is empty", "write a path, file:// or s3://bucket/prefix")


def splits_leave_rows(draft: Draft) -> Iterator[Finding]:
    """Something is left to train on."""
    for name, dataset in draft.data.items():
        path: Path = ("data", name, "split")
        if dataset is not None and draft.sound(path) and dataset.split.valid + dataset.split.test >= 1:
            split = dataset.split
            finding = f"valid ({split.valid:g}) and test ({split.test:g}) leave no rows for training"
            yield Finding(path, finding, "write shares whose sum is less than 1")


def classes_are_several(draft: Draft) -> Iterator[Finding]:
    """A category that lists or counts its classes has at least two."""
    for name, dataset in draft.data.items():
        for column_name, column in dataset.columns.items() if dataset is not None else ():
            classes = getattr(column, "classes", None)
            count = len(classes) if isinstance(classes, list | tuple) else classes
            path: Path = ("data", name, "columns", column_name, "classes")
            if isinstance(count, int) and count < 2 and draft.sound(path):
                yield Finding(
                    path, f"a category needs two classes, and this is {count}", "name every class, or none to take those of the rows"
                )


def references_exist(draft: Draft) -> Iterator[Finding]:
    """Functions of the user's own are where the document says."""
    for section in ("data", "models"):
        for name, part in getattr(draft, section).items():
            if part is not None and ":" in part.kind:
                trouble = references.trouble(part.kind)
                if trouble:
                    yield Finding((section, name, "kind") if isinstance(draft.raw[section][name], dict) else (section, name), *trouble)


def _made_for(family: str, kind: str) -> list[str]:
    return [name for name in CATALOG[family] if name != "python" and kind in find(family, name).targets]


def either(names: Any) -> str:
    """'a, b or c'."""
    *most, last = sorted(names)
    return f"{', '.join(most)} or {last}" if most else last


RULES: tuple[Rule, ...] = (
    names_exist,
    inputs_differ,
    inputs_fit_models,
    targets_fit,
    metrics_differ,
    phases_fit,
    gradients_meet,
    all_is_used,
    training_is_legal,
    nodes_may_be_lost,
    queues_have_priorities,
    comparison_fits,
    stores_are_known,
    splits_leave_rows,
    classes_are_several,
    references_exist,
)


def dataset_faults(draft: Draft, label: str) -> Iterator[Any]:
    """What datasets can see of their sources without reading rows, as faults."""
    for name, dataset in draft.data.items():
        if dataset is not None and draft.sound(("data", name)):
            yield from dataset.faults(f"{label}: {dotted(('data', name))}")
