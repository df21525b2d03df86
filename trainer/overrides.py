"""`--set path=value`: changes to a document from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.catalog import CATALOG
from trainer.document import Unreadable, parse_yaml
from trainer.errors import Fault, one_of
from trainer.places import Path, related, shown

NAMED = {"data": "dataset", "models": "model", "tasks": "task", "phases": "phase"}
"""Sections whose keys are names, and what they name."""


@dataclass(frozen=True)
class Override:
    """A change that was made; `since` is the shortest part of the path that was not there before."""

    path: Path
    since: Path

    def covers(self, path: Path) -> bool:
        """Whether what is found at `path` is this change's doing."""
        return path[: len(self.since)] == self.since and related(path, self.path)


def apply(raw: dict[str, Any], overrides: Sequence[str]) -> tuple[list[Override], list[Fault]]:
    """Change `raw` in place. Values are YAML: `train.batch=128`, `phases.joint.tasks=[a,b]`, `tasks.digit.metrics.0=accuracy`."""
    made: list[Override] = []
    faults: list[Fault] = []
    for text in overrides:
        name, equals, value_text = text.partition("=")
        keys = [key for key in re.split(r"[.\[\]]+", name.strip()) if key]
        place = f"--set {name.strip()}"
        if not equals or not keys:
            faults.append(Fault(f"--set {text}", "is not of the form path=value", "write it like --set train.batch=128"))
            continue
        try:
            value, findings = parse_yaml(value_text)
        except Unreadable as error:
            faults.append(Fault(place, f"the value {error.finding}", "quote the value as YAML wants it"))
            continue
        if findings:
            faults += [Fault(place, found.finding, found.remedy) for found in findings]
            continue
        done = _put(raw, keys, value)
        if isinstance(done, Override):
            made.append(done)
        else:
            faults.append(Fault(place, *done))
    return made, faults


def _put(raw: dict[str, Any], keys: list[str], value: Any) -> Override | tuple[str, str]:
    node: Any = raw
    path: Path = ()
    since: Path | None = None
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not re.fullmatch("[0-9]{1,9}", key) or int(key) > len(node):
                return f"there is no item {key} in a list of {len(node)}", f"write a position from 0 to {len(node)}"
            step: str | int = int(key)
            there = int(key) < len(node)
            if not there:
                node.append(None)
        else:
            step, there = key, key in node
            if not there and not last and path and path[0] in NAMED and len(path) == 1:
                return f"no {NAMED[str(path[0])]} is called {shown(key)}", one_of(key, node)
        path = (*path, step)
        if not there and since is None:
            since = path
        if last:
            node[step] = value
            break
        child = node[step] if there else None
        if child is None:
            child = {}
        elif isinstance(child, str) and _shorthand(path):
            child = {"kind": child}
        elif isinstance(child, int) and path == ("train", "zero"):
            child = {"stage": child}
        elif not isinstance(child, dict | list):
            return f"{'.'.join(keys[: depth + 1])} holds {shown(child)}, which has no fields", "set it as a whole"
        node[step] = child
        node = child
    return Override(path, since or path)


def _shorthand(path: Path) -> bool:
    """Whether a part stands here, which may be written as its kind alone."""
    return path[-1] in CATALOG or (len(path) > 1 and path[-2] in ("data", "models", "columns", "metrics"))
