"""Checks objects against the schemas that a real API server publishes; unknown fields are faults, as it would refuse them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parent / "schemas" / "kubernetes.json"


@cache
def schemas() -> dict[str, Any]:
    """The schemas by `apiVersion/kind`, closed: a server drops or refuses what they don't name."""
    document = json.loads(SCHEMAS.read_text())
    for part in (*document["kinds"].values(), *document["$defs"].values()):
        _close(part)
    return document


def _close(node: Any) -> None:
    if isinstance(node, dict):
        open_ = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        if isinstance(node.get("properties"), dict) and not open_:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)


def knows(thing: dict[str, Any]) -> bool:
    """Whether there is a schema of this kind."""
    return f"{thing['apiVersion']}/{thing['kind']}" in schemas()["kinds"]


def faults(thing: dict[str, Any]) -> Iterator[str]:
    """What a server would say against an object."""
    document = schemas()
    kind = f"{thing['apiVersion']}/{thing['kind']}"
    validator = Draft202012Validator({**document["kinds"][kind], "$defs": document["$defs"]})
    for error in validator.iter_errors(thing):
        yield f"{thing['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
