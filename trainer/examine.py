"""Whether models have the layers and modules that balancers are to look at: the models are built, without memory for their weights.

Only where a document asks for more than every model has: the path of a layer or module, or the last shared layer of a model
of the user's own. So torch is imported for those documents alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer.parts import Gram, Model
from trainer.places import Finding, Path
from trainer.rules import Draft
from trainer.spec import Phase, Task

if TYPE_CHECKING:
    from torch import nn


def balance_points_exist(draft: Draft) -> Iterator[Finding]:
    """Models have the layers and modules that the balancers of their phases are to look at."""
    built: dict[str, nn.Module | None] = {}
    for name, phase in draft.phases.items():
        path: Path = ("phases", name, "balancer")
        if phase is None or not draft.sound(path, ("phases", name, "tasks")):
            continue
        balancer = phase.balancer
        gram = balancer.asked_gram()
        if not (balancer.needs_gram or balancer.probe_every):
            continue
        for model, task in _shared(draft, phase).items():
            if not _in_question(gram, draft.models[model]):
                continue
            if model not in built:
                built[model] = _built(draft, draft.models[model], task)
            yield from _missing(built[model], model, gram, (*path, "gram") if balancer.gram else path)


def _shared(draft: Draft, phase: Phase) -> dict[str, Task]:
    """The sound models of a phase, with a task that says their inputs."""
    found: dict[str, Task] = {}
    for name in draft.phase_tasks(phase):
        task = draft.tasks.get(name)
        if (
            task is not None
            and task.model is not None
            and draft.models.get(task.model) is not None
            and draft.sound(("tasks", name), ("models", task.model))
        ):
            found.setdefault(task.model, task)
    return found


def _in_question(gram: Gram, model: Model | None) -> bool:
    own = model is not None and ":" in model.kind
    return gram.layer is not None or gram.point is not None or (own and gram.source != "representation")


def _built(draft: Draft, model: Model | None, task: Task) -> nn.Module | None:
    """The module, of what the document tells of its inputs; None where that is not enough, or it can't be built here."""
    import torch

    try:
        columns: list[Any] = [draft.column(task, name) for name in task.inputs]
        with torch.device("meta"):
            return model.build([column.expected() for column in columns])  # type: ignore[union-attr]
    except Exception:  # whatever the user's own code raises where it finds no rows, weights or devices: training will tell
        return None


def _missing(module: nn.Module | None, model: str, gram: Gram, path: Path) -> Iterator[Finding]:
    if module is None:
        return
    from trainer.points import lacking

    for field, finding, remedy in lacking(module, f"model '{model}'", gram.source, gram.layer, gram.point or ()):
        yield Finding((*path, field) if field else path, finding, remedy)
