"""Text into a spec: every fault of a document at once, overrides applied, defaults written out.

    read ─ override ─ validate ─ leave out what is broken ─ rules between parts ─ resolve

Imports neither torch nor deepspeed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path as File
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer import overrides as changes
from trainer import rules, rules_gan, rules_joint
from trainer.catalog import find
from trainer.document import read
from trainer.errors import Fault, SpecError, UserError
from trainer.examine import balance_points_exist
from trainer.explain import at, explain, strays, there
from trainer.overrides import NAMED, Override
from trainer.places import Finding, Path, dotted, on_one_line, related
from trainer.spec import Cluster, Compare, DatasetField, JointSpec, ModelField, Observe, Phase, Publish, Task, Train

_UNITS: dict[str, Any] = {
    "data": DatasetField,
    "models": ModelField,
    "tasks": Task,
    "phases": Phase,
    "train": Train,
    "compare": Compare,
    "publish": Publish,
    "observe": Observe,
    "cluster": Cluster,
}
_OBJECTIVE = {"category": "cross_entropy", "number": "mse"}
_METRICS = {"category": ("accuracy", "f1_macro"), "number": ("r2", "mae")}


def load_spec(source: str | File | dict[str, Any], overrides: Sequence[str] = (), *, sources: bool = True) -> JointSpec:
    """The resolved spec of a document.

    Args:
        source: path or URI (`file://`, `s3://`) of YAML or, where it ends in `.json`, JSON; a JSON text that starts with '{'; or a dict.
        overrides: `path=value`, applied in order; values are YAML.
        sources: whether to look for the files that datasets read, and into models. Steps that come after data was prepared may run
            where those files are not.

    Raises:
        SpecError: with every fault that was found.
        StoreError: if the store of a URI can't be reached.
    """
    label, raw, unread = read(source)
    made, faults = changes.apply(raw, overrides)
    findings = [*unread, *strays(raw)]
    spec = None
    try:
        spec = JointSpec.model_validate(raw)
    except ValidationError as error:
        # what could not be read is not missing: its mapping may look empty now
        findings = _merged(findings, (found for found in explain(error, raw) if not any(_leads(found.path, bad.path) for bad in unread)))
    findings, draft = _draft(raw, findings)
    for rule in (*rules.RULES, *rules_joint.RULES, *rules_gan.RULES):
        findings = _merged(findings, rule(draft))
    if sources:
        findings = _merged(findings, balance_points_exist(draft))
    seen = _seen_by_datasets(draft, label, made) if sources else []
    ranked = [(_rank(raw, found.path), Fault(_place(label, made, found.path), found.finding, found.remedy)) for found in findings]
    ranked += [(_rank(raw, ("data", name)), fault) for name, fault in seen]
    faults += [fault for _, fault in sorted(ranked, key=lambda pair: pair[0])]
    if faults or spec is None:
        raise SpecError(dict.fromkeys(Fault(*map(on_one_line, (fault.place, fault.finding, fault.remedy))) for fault in faults))
    return _resolve(spec)


def _merged(findings: list[Finding], more: Any) -> list[Finding]:
    """Findings and those of `more` whose place is not blamed yet."""
    blamed = {found.path for found in findings}
    return [*findings, *(found for found in more if found.path not in blamed)]


def _leads(path: Path, to: Path) -> bool:
    return len(path) < len(to) and to[: len(path)] == path


def _rank(raw: Any, path: Path) -> tuple[int, ...]:
    """Position in the document; what is missing comes last in its mapping."""
    rank: list[int] = []
    for key in path:
        if isinstance(key, int):
            rank.append(key)
            raw = raw[key] if isinstance(raw, list) and key < len(raw) else None
        else:
            keys = list(raw) if isinstance(raw, dict) else []
            rank.append(keys.index(key) if key in keys else len(keys))
            raw = raw.get(key) if isinstance(raw, dict) else None
    return tuple(rank)


def _place(label: str, made: Sequence[Override], path: Path) -> str:
    if any(change.covers(path) for change in made):
        return f"--set {dotted(path)}"
    return f"{label}: {dotted(path)}" if path else label


def _seen_by_datasets(draft: rules.Draft, label: str, made: Sequence[Override]) -> list[tuple[str, Fault]]:
    """What datasets see of their sources without reading rows."""
    seen: list[tuple[str, Fault]] = []
    for name, dataset in draft.data.items():
        path: Path = ("data", name)
        if dataset is None or not draft.sound(path):
            continue
        place = _place(label, made, path)
        try:
            seen += [(name, fault) for fault in dataset.faults(place)]
        except UserError as error:
            seen += [(name, fault) for fault in error.faults]
        except (OSError, ValueError) as error:
            seen.append((name, Fault(place, f"its source can't be looked at: {error}", "check its path")))
    changed = {f"{label}: {dotted(change.path)}": f"--set {dotted(change.path)}" for change in made}
    return [(name, Fault(changed.get(fault.place, fault.place), fault.finding, fault.remedy)) for name, fault in seen]


@dataclass
class _Pruner:
    """Leaves broken leaves out of a copy of the document, and says where items of a shortened list were."""

    raw: dict[str, Any]
    doc: dict[str, Any]
    tainted: set[Path]
    gone: dict[Path, list[int]] = field(default_factory=dict)

    def drop(self, path: Path) -> bool:
        """Leave out what stands at a path of the document; False if nothing did."""
        self.tainted.add(path)
        if not path:
            return False
        node = self.here(path[:-1])
        if isinstance(node, dict) and path[-1] in node:
            del node[path[-1]]
            return True
        if isinstance(node, list) and isinstance(path[-1], int):
            gone = self.gone.setdefault(path[:-1], [])
            index = path[-1] - sum(g < path[-1] for g in gone)
            if path[-1] not in gone and index < len(node):
                del node[index]
                gone.append(path[-1])
                return True
        return False

    def here(self, path: Path) -> Any:
        """The value in the copy that stood at a path of the document."""
        now: Path = ()
        for i, key in enumerate(path):
            gone = self.gone.get(path[:i], ())
            if key in gone:
                return None
            now = (*now, key - sum(g < key for g in gone) if isinstance(key, int) else key)
        return at(self.doc, now)

    def original(self, path: Path) -> Path:
        """Where in the document it was what stands at a path of the copy."""
        was: Path = ()
        for key in path:
            if isinstance(key, int):
                for g in sorted(self.gone.get(was, ())):
                    key += g <= key
            was = (*was, key)
        return was


def _draft(raw: dict[str, Any], findings: list[Finding]) -> tuple[list[Finding], rules.Draft]:
    """All findings of single parts, and what is left of the document without what they blame."""
    pruner = _Pruner(raw, deepcopy(raw), set())
    for found in findings:
        pruner.drop(found.path)
    units: dict[str, Any] = {}
    for section in _UNITS:
        if section not in NAMED:
            units[section], findings = _unit(pruner, (section,), findings) if section in raw else (_UNITS[section](), findings)
            continue
        units[section] = {}
        for name in raw[section] if isinstance(raw.get(section), dict) else ():
            units[section][name], findings = _unit(pruner, (section, name), findings)
    tainted = frozenset(pruner.tainted)
    cluster = units["cluster"] if not any(path[0] == "cluster" for path in tainted if path) else None
    return findings, rules.Draft(
        raw,
        tainted,
        **{name: units[name] for name in ("data", "models", "tasks", "phases", "train", "compare", "publish")},
        ranks=cluster.ranks if cluster else None,
        gpus=cluster.gpus_per_node if cluster else None,
        cluster=cluster,
    )


@cache
def _adapter(section: str) -> Callable[[Any], Any]:
    return TypeAdapter(_UNITS[section]).validate_python


_STAND_INS: dict[str, Any] = {"data": "", "model": "", "input": [], "target": ""}
"""Fields a task can't be read without, and what is put there to read the rest."""


def _unit(pruner: _Pruner, path: Path, findings: list[Finding]) -> tuple[Any, list[Finding]]:
    """One named thing or section without its broken leaves; None if nothing sensible is left."""
    absent: dict[str, None] = {}
    node = pruner.here(path)
    if node is None:
        return None, findings
    while True:
        node = pruner.here(path)
        try:
            value = _adapter(str(path[0]))(node)
            return (value.model_copy(update=absent) if absent else value), findings
        except ValidationError as error:
            progress = False
            for found in explain(error, pruner.doc, path):
                place = pruner.original(found.path)
                if not any(related(place, bad) for bad in pruner.tainted) and place[:-1] not in pruner.gone:
                    findings = [*findings, Finding(place, found.finding, found.remedy)]
                gap = path[0] == "tasks" and len(place) == 3 and str(place[2]) in _STAND_INS
                missing = not there(pruner.doc, found.path)
                if gap and isinstance(node, dict):
                    pruner.tainted.add(place)
                    node[str(place[2])] = _STAND_INS[str(place[2])]
                    progress |= str(place[2]) not in absent
                    absent[str(place[2])] = None
                elif len(place) - missing > len(path):
                    # what needs a field that is not there goes as a whole
                    progress |= pruner.drop(place[:-1] if missing else place)
            if not progress:
                pruner.tainted.add(path)
                return None, findings


def _resolve(spec: JointSpec) -> JointSpec:
    """Every default that depends on other parts of the document, written out."""
    tasks = {}
    for name, task in spec.tasks.items():
        kind = spec.data[task.data].columns[task.target].kind if task.target is not None else None
        objective = task.objective or find("objective", _OBJECTIVE[kind])()  # type: ignore[index]
        metrics = task.metrics
        if metrics is None:
            judged = kind if objective.judges is None else objective.judges
            metrics = [find("metric", metric)() for metric in objective.metrics or _METRICS.get(judged or "", ())]
        tasks[name] = task.model_copy(update={"objective": objective, "metrics": metrics})
    phases = {name: phase.model_copy(update={"tasks": spec.phase_tasks(name)}) for name, phase in spec.phases.items()}
    return spec.model_copy(update={"tasks": tasks, "phases": phases})
