"""Write docs/spec.md from the models of the document and the catalogue of parts.

python scripts/spec_reference.py            write it
python scripts/spec_reference.py --check    exit code 1 if it is not up to date
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.catalog import CATALOG, find
from trainer.explain import FAMILIES, choices
from trainer.spec import JointSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "spec.md"
BASES = {family: base for base, family in FAMILIES.items()}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}

HEAD = """\
# The document

<!-- Written by scripts/spec_reference.py from the models: `make docs`. -->

One YAML (or JSON) document says which models, data and tasks there are and how they are trained together.
`cotrain check FILE` finds every fault of it at once. `--set path=value` changes a field for one command: `--set train.batch=128`.

A part (dataset, column, model, objective, optimizer, balancer, mixer, metric) is written as its kind, `balancer: equal`, or as a
mapping with `kind` and its fields, `balancer: {kind: static, weights: {digit: 2, ink: 1}}`. Names of datasets, models, tasks and phases
are a letter, then up to 39 of a-z, 0-9 and _. Unknown keys, keys given twice and things that nothing uses are faults.

YAML is read as version 1.2: `3e-4` is a number, `no` is text. Tags and merge keys (`<<`) are not read; anchors and aliases are.
"""


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def word(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words, with its bounds."""
    bound = " and ".join(bounds(metadata))
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for arg in args[1:] for m in (arg.metadata if isinstance(arg, FieldInfo) else [arg])]
        return word(args[0], (*inner, *metadata))
    if origin in (Union, types.UnionType):
        return " or ".join(word(arg, () if arg is type(None) else metadata) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(f"`{arg}`" for arg in args)
    if origin is list or (origin is tuple and args[-1:] == (...,)):
        item = word(args[0])
        said = f"list of ({item})" if " or " in item else f"list of {item}"
    elif origin is tuple:
        said = "list: " + ", ".join(word(arg) for arg in args)
    elif origin is dict:
        said = "mapping of " + word(args[1]) if args[1] is not Any else "mapping"
    elif annotation in FAMILIES:
        said = link(FAMILIES[annotation])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        said = link(annotation.__name__)
    else:
        said = _WORDS[annotation]
    return f"{said} ({bound})" if bound and origin else " ".join(filter(None, (said, bound)))


def bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    """Bounds of a field, in words."""
    for one in metadata:
        for name, sign in _SIGNS.items():
            if hasattr(one, name):
                yield f"{sign} {getattr(one, name):.12g}"
        for name, says in _LENGTHS.items():
            if getattr(one, name, None) is not None:
                yield f"{says} {getattr(one, name)}"
        if getattr(one, "pattern", None):
            yield f"like `{one.pattern}`"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value)}`"


def table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    if not fields:
        return
    yield "| field | type | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        row = (f"`{field.alias or name}`", word(field.annotation, tuple(field.metadata)), default(field), field.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def about(thing: type) -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models without a kind that an annotation mentions."""
    for choice in choices(annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel) and choice not in FAMILIES:
            yield choice
        for arg in get_args(choice):
            if not isinstance(arg, str | int):
                yield from models_in(arg)


def section(model: type[BaseModel], seen: set[type], level: str = "##") -> Iterator[str]:
    """A model, then the models that its fields mention for the first time."""
    if model in seen:
        return
    seen.add(model)
    yield f"{level} {model.__name__}\n"
    yield about(model) + "\n"
    yield from table(model.model_fields)
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from section(inner, seen, level)


def part(family: str, kind: str, seen: set[type]) -> Iterator[str]:
    """A kind of a family: what it is, and the fields that its base does not have."""
    cls = find(family, kind)
    common = {name: repr(field) for name, field in BASES[family].model_fields.items()}
    fields = {name: field for name, field in cls.model_fields.items() if name != "kind" and common.get(name) != repr(field)}
    yield f"### {family} `{'package.module:function' if kind == 'python' else kind}`\n"
    yield about(cls) + "\n"
    takes = getattr(cls, "takes", None) or getattr(cls, "targets", None)
    if takes:
        most = getattr(cls, "most_inputs", None)
        yield f"For columns of kind {', '.join(sorted(takes))}{f'; at most {most}' if most else ''}.\n"
    yield from table(fields)
    for field in fields.values():
        for inner in models_in(field.annotation):
            yield from section(inner, seen, "####")


def page() -> str:
    """The whole reference."""
    seen: set[type] = set()
    lines = [HEAD, *section(JointSpec, seen)]
    for family, base in BASES.items():
        lines.append(f"## {family}\n")
        lines.append(f"{about(base).splitlines()[0]}\n")
        common = {name: field for name, field in base.model_fields.items() if name != "kind"}
        if common:
            lines.append("Fields of every kind:\n")
            lines += table(common)
            for field in common.values():
                for inner in models_in(field.annotation):
                    lines += section(inner, seen, "###")
        for kind in CATALOG[family]:
            lines += part(family, kind, seen)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> int:
    """Write the page; with `--check` only say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
