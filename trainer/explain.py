"""What pydantic found, in the words of the document: a place, a finding with its value, one remedy."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer import parts
from trainer.catalog import CATALOG, find
from trainer.errors import one_of
from trainer.places import Finding, Path, is_text, related, shown
from trainer.spec import JointSpec

FAMILIES: dict[type[BaseModel], str] = {
    parts.Dataset: "dataset",
    parts.Column: "column",
    parts.Model: "model",
    parts.Objective: "objective",
    parts.Optimizer: "optimizer",
    parts.Balancer: "balancer",
    parts.Mixer: "mixer",
    parts.Metric: "metric",
    parts.Sync: "sync",
}

_WORDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "none": "null",
}


def resolve(loc: Path, raw: Any, absent: bool = False) -> Path:
    """A pydantic location as a path of the document: tags of unions and shorthands are left out.

    `absent` says that the last key is one that is not there.
    """
    path: Path = ()
    node = raw
    for i, key in enumerate(loc):
        if isinstance(node, dict) and isinstance(key, str) and (key in node or (absent and i == len(loc) - 1)):
            path = (*path, key)
            node = node.get(key)
        elif isinstance(node, list) and isinstance(key, int):
            path = (*path, key)
            node = node[key] if key < len(node) else None
    return path


def at(raw: Any, path: Path) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        if isinstance(raw, dict):
            raw = raw.get(key)
        elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            raw = raw[key]
        else:
            return None
    return raw


def there(raw: Any, path: Path) -> bool:
    """Whether a path leads somewhere."""
    parent = at(raw, path[:-1])
    if not path or isinstance(parent, dict):
        return not path or path[-1] in parent
    return isinstance(parent, list) and isinstance(path[-1], int) and path[-1] < len(parent)


def choices(annotation: Any) -> Iterator[Any]:
    """The plain types an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from choices(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for arg in get_args(annotation):
            yield from choices(arg)
    else:
        yield annotation


def _class_of(annotation: Any, value: Any) -> type[BaseModel] | None:
    for choice in choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            family = FAMILIES.get(choice)
            if family is None:
                return choice
            kind = value.get("kind") if isinstance(value, dict) else value
            if isinstance(kind, str) and ":" in kind and "python" in CATALOG[family]:
                return find(family, "python")
            return find(family, kind) if isinstance(kind, str) and kind in CATALOG[family] and kind != "python" else None
    return None


def declared(path: Path, raw: Any) -> tuple[Any, FieldInfo | None]:
    """The annotation that holds at a path, and the field if the path ends in one; (None, None) if unknown."""
    annotation: Any = JointSpec
    field: FieldInfo | None = None
    for i, key in enumerate(path):
        model = _class_of(annotation, at(raw, path[:i]))
        field = None
        if model is not None:
            field = written(model).get(str(key)) or model.model_fields.get(str(key))
            if field is None:
                return None, None
            annotation = field.annotation
            continue
        wanted: tuple[type, ...] = (dict, Mapping) if isinstance(key, str) else (list, tuple)
        held = [get_args(choice) for choice in choices(annotation) if get_origin(choice) in wanted]
        if not held or not held[0]:
            return None, None
        annotation = held[0][-1] if isinstance(key, str) or len(held[0]) <= key else held[0][key]
    return annotation, field


def fields_of(path: Path, raw: Any) -> list[str]:
    """Names of the fields that may stand in the mapping at a path."""
    model = _class_of(declared(path, raw)[0], at(raw, path))
    return list(written(model)) if model else []


def written(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name that they have in a document."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def explain(error: ValidationError, raw: Any, prefix: Path = ()) -> list[Finding]:
    """One finding a place. `prefix` is where the validated value stands in `raw`."""
    found: dict[Path, list[Finding]] = {}
    wrong_type: dict[Path, list[str]] = {}
    for one in error.errors(include_url=False):
        kind = one["type"]
        path = resolve((*prefix, *one["loc"]), raw, absent=kind == "missing")
        word = _WORDS.get(kind.split("_")[0])
        if word and kind.endswith(("_type", "_parsing", "_from_float", "_parsing_size", "_number", "_unicode")):
            wrong_type.setdefault(path, []).append(word)
        else:
            found.setdefault(path, []).append(_finding(one, path, raw))
    for path, words in wrong_type.items():
        # of a union, only the choice that got furthest into the value is worth telling
        deeper = any(len(other) > len(path) and related(path, other) for other in (*wrong_type, *found))
        if not deeper:
            wanted = " or ".join(dict.fromkeys(words))
            value = at(raw, path)
            quote = wanted == "text" and isinstance(value, int | float)
            remedy = f"quote it: '{shown(value)}'" if quote else f"write {wanted}"
            found.setdefault(path, []).insert(0, Finding(path, f"{shown(value)} is not {wanted}", remedy))
    return [findings[0] for findings in found.values()]


def _finding(one: Any, path: Path, raw: Any) -> Finding:
    value, context = at(raw, path), one.get("ctx") or {}
    kind, said = one["type"], str(one["msg"])
    annotation, field = declared(path, raw)
    match kind:
        case "missing":
            description = field.description if field else None
            return Finding(
                path, "is missing", f"add it: {description[0].lower()}{description[1:].rstrip('.')}" if description else "add it"
            )
        case "extra_forbidden":
            return Finding(path, f"no field is called {shown(path[-1])}", one_of(path[-1], fields_of(path[:-1], raw)))
        case "greater_than_equal":
            return Finding(path, f"{shown(value)} is less than {shown(context['ge'])}", f"write {shown(context['ge'])} or more")
        case "greater_than":
            return Finding(path, f"{shown(value)} is not more than {shown(context['gt'])}", f"write more than {shown(context['gt'])}")
        case "less_than_equal":
            return Finding(path, f"{shown(value)} is more than {shown(context['le'])}", f"write {shown(context['le'])} or less")
        case "less_than":
            return Finding(path, f"{shown(value)} is not less than {shown(context['lt'])}", f"write less than {shown(context['lt'])}")
        case "literal_error":
            known = [str(arg) for choice in choices(annotation) if get_origin(choice) is Literal for arg in get_args(choice)]
            return Finding(
                path, f"{shown(value)} is not one of its values", one_of(value, known) if known else f"write {context['expected']}"
            )
        case "string_pattern_mismatch":
            if one["loc"][-1:] == ("[key]",):
                return Finding(path, f"{shown(path[-1])} can't be a name", "write a letter, then up to 39 of a-z, 0-9 and _")
            if path == ("name",):
                return Finding(path, f"{shown(value)} can't be a name", "write a letter, then up to 39 of a-z, 0-9 and -, no - at the end")
            form = (field.description or "").rstrip(".") if field else ""
            return Finding(path, f"{shown(value)} is not of the form it needs", f"write it like {form or context['pattern']}")
        case "too_short":
            size, least = context["actual_length"], context["min_length"]
            return Finding(
                path, f"holds {size} of at least {least}" if size else "is empty", f"add {least - size} more" if size else "add one"
            )
        case "too_long":
            most = context["max_length"]
            return Finding(path, f"holds {context['actual_length']} of at most {most}", f"keep {most}")
        case "part_type":
            family = context["family"]
            names = [name for name in CATALOG[family] if name != "python"]
            return Finding(path, f"{shown(value)} is no {family}", f"write its kind, or a mapping with 'kind'; {one_of('', names)}")
        case "part_kind_missing":
            return Finding(path, "says no 'kind'", f"add kind; {context['remedy']}")
        case "value_error" | "assertion_error":
            said = str(context.get("error", said))
    if not said:
        said = f"{shown(value)} is refused"
    cure = "change one of these values" if isinstance(value, dict) else "correct it"
    return Finding(path, said, str(context.get("remedy") or cure))


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a document that is no mapping and no list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path, value


def strays(raw: Any) -> list[Finding]:
    """Values that pydantic would let through, and that would hurt later."""
    found = []
    for path, value in leaves(raw):
        if isinstance(value, bool):
            wanted = set(choices(declared(path, raw)[0]))
            if wanted & {int, float} and bool not in wanted:
                found.append(Finding(path, f"{shown(value)} is not a number", "write a number"))
        elif isinstance(value, int) and abs(value) >= 2**63:
            found.append(Finding(path, f"{shown(value)} is too large for a 64-bit integer", "write a smaller number"))
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(Finding(path, f"{shown(value)} is not a finite number", "write a finite number"))
        elif isinstance(value, str) and not is_text(value):
            found.append(Finding(path, f"{shown(value)} holds characters that are no text", "remove them"))
    return found
