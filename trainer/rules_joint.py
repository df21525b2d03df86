"""What must hold where tasks read models and each other: rules as in `trainer.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.catalog import CATALOG, find
from trainer.errors import one_of
from trainer.parts import TARGET
from trainer.places import Finding, Path, shown
from trainer.rules import Draft, Rule, either
from trainer.spec import Phase, Task


def tasks_are_whole(draft: Draft) -> Iterator[Finding]:
    """Tasks name a model, input and target where their objective needs them, and only there."""
    for name, task in draft.readable():
        path: Path = ("tasks", name)
        if not draft.sound((*path, "objective")):
            continue
        objective = task.objective
        wide = objective is not None and objective.wide
        for field in ("model", "input", "target"):
            given = getattr(task, field) is not None
            needed = not wide or (field == "target" and objective is not None and objective.takes_target is True)
            barred = wide and (field != "target" or (objective is not None and objective.takes_target is False))
            if not given and needed and draft.sound((*path, field)):
                said = (Task.model_fields[field].description or "").split(". ")[0].rstrip(".")
                yield Finding((*path, field), "is missing", f"add it: {said[0].lower()}{said[1:]}")
            elif given and barred and objective is not None:
                what = "takes no target" if field == "target" else f"says itself which models see which columns, so {field} has no meaning"
                yield Finding((*path, field), f"objective '{objective.kind}' {what}", "remove it")


def objectives_find_what_they_read(draft: Draft) -> Iterator[Finding]:
    """Wide objectives name models, tasks and columns that are there and fit."""
    for name, task in draft.readable():
        path: Path = ("tasks", name, "objective")
        objective, dataset = task.objective, draft.data.get(task.data)
        if objective is None or not objective.wide or not draft.sound(path):
            continue
        columns = draft.column_names(task.data) if task.data in draft.data else []
        missing = f"dataset '{task.data}' has no column "
        for model_name, inputs in objective.models().items():
            if model_name not in draft.models:
                if draft.listed("models"):
                    yield Finding(path, f"no model is called {shown(model_name)}", one_of(model_name, draft.models))
                continue
            model = draft.models[model_name]
            for column_name in (task.target if c == TARGET else c for c in inputs):
                if column_name is None:
                    continue  # a target that is missing is told of elsewhere
                if columns and column_name not in columns:
                    yield Finding(path, missing + shown(column_name), one_of(column_name, columns))
                    continue
                column = dataset.columns.get(column_name) if dataset else None
                if model is not None and column is not None and model.takes is not None and column.kind not in model.takes:
                    finding = f"model '{model_name}' ({model.kind}) can't take column {shown(column_name)} of kind {column.kind}"
                    yield Finding(path, finding, f"name a column of kind {either(model.takes)}")
        for column_name in objective.also():
            if columns and column_name not in columns:
                yield Finding(path, missing + shown(column_name), one_of(column_name, columns))
        for other in objective.reads():
            yield from _read(draft, path, name, task, other)


def _read(draft: Draft, path: Path, name: str, task: Task, other: str) -> Iterator[Finding]:
    if other not in draft.tasks:
        if draft.listed("tasks"):
            yield Finding(path, f"no task is called {shown(other)}", one_of(other, [t for t in draft.tasks if t != name]))
        return
    read = draft.tasks[other]
    if read is None or task.data not in draft.data:
        return
    if read.objective is not None and read.objective.wide:
        plain = [t for t, said in draft.readable() if said.objective is None or not said.objective.wide]
        yield Finding(path, f"reads task '{other}', whose objective '{read.objective.kind}' has no head output", one_of("", plain))
        return
    here, there = draft.data[task.data], draft.data.get(read.data)
    if here is None or there is None:
        return
    for column in read.inputs:
        found, wanted = here.columns.get(column), there.columns.get(column)
        if wanted is not None and (found is None or found.kind != wanted.kind):
            finding = f"task '{other}' sees column '{column}' ({wanted.kind}), which dataset '{task.data}' does not have"
            yield Finding(
                path, finding, f"give the dataset such a column, or name tasks that see others; they need {', '.join(read.inputs)}"
            )
    if there.columns.get(read.target or "") is not None and read.target is not None:
        predicted = there.columns[read.target].kind
        if predicted not in (task.objective.targets or {"category"}):  # type: ignore[union-attr]
            finding = f"task '{other}' predicts the {predicted} '{read.target}', and objective '{task.objective.kind}' compares classes"  # type: ignore[union-attr]
            yield Finding(path, finding, "name tasks that predict a category")
            return
    mine, theirs = here.columns.get(task.target or ""), there.columns.get(read.target or "")
    if mine is not None and theirs is not None and mine.kind != theirs.kind and task.target is not None:
        yield Finding(
            path,
            f"task '{other}' predicts the {theirs.kind} '{read.target}', not the {mine.kind} '{task.target}'",
            "name tasks with the same target",
        )


def maps_meet_heads(draft: Draft) -> Iterator[Finding]:
    """Heads that look at places stand on models that make maps; objectives that read representations get vectors."""
    for name, task in draft.readable():
        objective = task.objective
        if objective is None or not draft.sound(("tasks", name, "objective")):
            continue
        model = draft.models.get(task.model) if task.model is not None else None
        if model is not None and objective.takes_maps and model.maps is False:
            kinds = [kind for kind in CATALOG["model"] if kind != "python" and find("model", kind).maps]
            finding = f"objective '{objective.kind}' needs a map, and model '{task.model}' ({model.kind}) makes vectors"
            yield Finding(("tasks", name, "model"), finding, f"name a model of kind {either(kinds)}")
        for other in objective.models():
            read = draft.models.get(other)
            if read is not None and read.maps and not objective.takes_maps:
                finding = f"objective '{objective.kind}' needs vectors, and model '{other}' ({read.kind}) makes maps"
                yield Finding(("tasks", name, "objective"), finding, "name a model that makes vectors")


def learning(draft: Draft, phase: Phase) -> tuple[frozenset[str], frozenset[str]] | None:
    """Models and heads that learn in a phase; None where the document is too broken to tell."""
    names = draft.phase_tasks(phase)
    tasks = {name: draft.tasks.get(name) for name in names}
    if any(task is None for task in tasks.values()):
        return None
    taught = [other for task in tasks.values() if task and task.objective for other in task.objective.teaches()]
    if any(draft.tasks.get(other) is None for other in taught):
        return None
    heads = {*names, *taught}
    if phase.train is not None:
        return frozenset(phase.train), frozenset(heads)
    models = {task.model for name in heads if (task := draft.tasks[name]) is not None and task.model is not None}
    models |= {model for task in tasks.values() if task and task.objective for model in task.objective.trains()}
    return frozenset(models), frozenset(heads)


def rounds_fit(draft: Draft) -> Iterator[Finding]:
    """Phases that take turns train the same parameters or different ones, and run to their end."""
    rounds = draft.raw.get("rounds", 1)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 2 or not draft.sound(("rounds",)):
        return
    if draft.train is not None and draft.train.early_stop is not None and draft.sound(("train", "early_stop")):
        yield Finding(("train", "early_stop"), f"phases take turns in {rounds} rounds, and none can stop before the others", "remove it")
    seen: list[tuple[str, tuple[frozenset[str], frozenset[str]]]] = []
    optimizers: dict[tuple[frozenset[str], frozenset[str]], str] = {}
    for name, phase in draft.phases.items():
        found = learning(draft, phase) if phase is not None and draft.sound(("phases", name)) else None
        if found is None or phase is None:
            continue
        for other, theirs in seen:
            shared = (found[0] & theirs[0]) or (found[1] & theirs[1])
            if found != theirs and shared:
                both = ", ".join(sorted(shared))
                finding = (
                    f"trains {both}, as phase '{other}' does, but not all that it trains; a set of models has one optimiser in all rounds"
                )
                yield Finding(("phases", name, "train"), finding, "train the same models in both, or different ones")
                break
        if found in optimizers and phase.optimizer is not None:
            first = optimizers[found]
            yield Finding(("phases", name, "optimizer"), f"trains what phase '{first}' does, with its optimiser", "remove it")
        optimizers.setdefault(found, name)
        seen.append((name, found))


def syncs_follow_what_learns(draft: Draft) -> Iterator[Finding]:
    """A sync follows a model that learns in its phase."""
    for name, phase in draft.phases.items():
        found = learning(draft, phase) if phase is not None and draft.sound(("phases", name)) else None
        for i, sync in enumerate(phase.syncs if phase is not None and found is not None else ()):
            if found is not None and sync.of not in found[0]:
                yield Finding(
                    ("phases", name, "syncs", i), f"no model that learns here is called {shown(sync.of)}", one_of(sync.of, found[0])
                )


def gradients_stay_plain(draft: Draft) -> Iterator[Finding]:
    """Balancers that read gradients get them at one representation; gradients of gradients are not sharded."""
    for name, phase in draft.phases.items():
        if phase is None or not draft.sound(("phases", name, "balancer"), ("phases", name, "tasks")):
            continue
        balancer = phase.balancer
        looks = balancer.needs_gram or balancer.needs_grads or balancer.probe_every is not None
        for task_name in draft.phase_tasks(phase) if looks else ():
            task = draft.tasks.get(task_name)
            if task is not None and task.objective is not None and task.objective.wide:
                where: Path = ("phases", name, "balancer")
                reads = f"gradients at one representation, and task '{task_name}' ({task.objective.kind}) reads several"
                if balancer.needs_gram or balancer.needs_grads:
                    remedy = "write equal, static, uncertainty or another that reads losses only"
                    yield Finding(where, f"{balancer.kind} weighs {reads}", remedy)
                else:
                    yield Finding((*where, "probe_every"), f"looks at {reads}", "remove it")
                break
    if draft.train is None or draft.train.zero.stage < 3 or not draft.sound(("train", "zero")):
        return
    for name, task in draft.readable():
        if task.objective is not None and task.objective.double_backward:
            finding = f"{task.objective.kind} differentiates a gradient, which ZeRO stage 3 can't do: it shards the parameters in between"
            yield Finding(("tasks", name, "objective"), finding, "set train.zero.stage to 2 or less, or choose another loss")


def published_models_are_kept(draft: Draft) -> Iterator[Finding]:
    """Models published besides those that predictions need are part of a result: a task that is judged uses them."""
    if draft.publish is None or not draft.publish.models or not draft.complete("tasks"):
        return
    judged = [task for _, task in draft.readable() if task.metrics != [] and (task.objective is None or task.objective.judges != "")]
    kept = {model for task in judged for model in draft.models_of(task)}
    for i, model in enumerate(draft.publish.models):
        path: Path = ("publish", "models", i)
        if model not in draft.models and draft.listed("models"):
            yield Finding(path, f"no model is called {shown(model)}", one_of(model, draft.models))
        elif model in draft.publish.models[:i]:
            yield Finding(path, f"model {shown(model)} is named twice", "name it once")
        elif model in draft.models and model not in kept:
            yield Finding(path, f"no task that is judged uses model {shown(model)}, so a result does not hold it", one_of(model, kept))


RULES: tuple[Rule, ...] = (
    tasks_are_whole,
    objectives_find_what_they_read,
    maps_meet_heads,
    rounds_fit,
    syncs_follow_what_learns,
    gradients_stay_plain,
    published_models_are_kept,
)
