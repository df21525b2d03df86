"""Checks objects against the schemas that a real API server publishes; unknown fields are faults, as it would refuse them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

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


def _once(validator: Any, keys: list[str], items: Any, schema: Any) -> Iterator[ValidationError]:
    """Lists that are maps have each key once: a server refuses the second."""
    seen = [tuple(item.get(key) for key in keys) for item in items] if isinstance(items, list) else []
    for key in {key for key in seen if seen.count(key) > 1}:
        yield ValidationError(f"{key} is there twice")


_Validator = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _once})


def knows(thing: dict[str, Any]) -> bool:
    """Whether there is a schema of this kind."""
    return f"{thing['apiVersion']}/{thing['kind']}" in schemas()["kinds"]


def faults(thing: dict[str, Any]) -> Iterator[str]:
    """What a server would say against an object."""
    document = schemas()
    kind = f"{thing['apiVersion']}/{thing['kind']}"
    validator = _Validator({**document["kinds"][kind], "$defs": document["$defs"]})
    for error in validator.iter_errors(thing):
        yield f"{thing['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
