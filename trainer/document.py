"""Text into plain data: safe YAML and JSON, with nothing in it that a document has no use for.

YAML 1.2's core types are read: `3e-4` is a number, `no` is text. Tags, merge keys and keys that are not
text are refused, keys given twice are found, and nesting and size are bounded, so that a few lines of
aliases can't fill the memory.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path as File
from typing import Any

import yaml
from pydantic import BaseModel
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trainer.errors import SpecError, one_of
from trainer.places import Finding, Path, is_text, shown
from trainer.stores import open_store

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_TYPES = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class Unreadable(Exception):
    """The text is no document at all."""

    def __init__(self, finding: str, remedy: str, line: int | None = None) -> None:
        super().__init__(finding)
        self.finding, self.remedy, self.line = finding, remedy, line


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _too_deep(self.peek_event().start_mark.line + 1)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.depth -= 1
        return node


for _type, (_pattern, _first) in _TYPES.items():
    _Loader.add_implicit_resolver(_TAG + _type, re.compile(f"(?:{_pattern})\\Z"), _first)


def _too_deep(line: int | None = None) -> Unreadable:
    return Unreadable(f"is nested more than {MAX_DEPTH} levels deep", "write it flatter", line)


class _Builder:
    """Counts values while it copies them, so that aliases of aliases are stopped early."""

    def __init__(self) -> None:
        self.values = 0
        self.findings: list[Finding] = []

    def _enter(self, path: Path) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise Unreadable(f"holds more than {MAX_VALUES} values, aliases written out", "use fewer aliases")
        if len(path) > MAX_DEPTH:
            raise _too_deep()

    def found(self, path: Path, finding: str, remedy: str) -> None:
        self.findings.append(Finding(path, finding, remedy))

    def from_node(self, node: Node, path: Path = ()) -> Any:
        self._enter(path)
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.from_node(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag.startswith(_TAG):
            try:
                return _scalar(node.tag.removeprefix(_TAG), node.value)
            except (KeyError, ValueError):
                pass
        tag = node.tag.replace(_TAG, "!!")
        self.found(path, f"the tag {shown(tag)} in line {node.start_mark.line + 1} is not read here", "remove the tag")
        return None

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        lines: dict[str, int] = {}
        made: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            text = key.value if isinstance(key, ScalarNode) else ""
            if text == "<<" and key.style is None:
                self.found((*path, text), f"the merge key '<<' in line {line} is not read here", "write the merged keys out")
            elif not isinstance(key, ScalarNode):
                self.found((*path, "?"), f"the key in line {line} is a list or a mapping, not text", "write text before the colon")
            elif key.tag != f"{_TAG}str":
                self.found((*path, text), f"the key {text} in line {line} is not text", f"quote it: '{text}'")
            elif not is_text(text):
                self.found((*path, text), f"the key in line {line} holds characters that are no text", "remove them")
            elif text in lines:
                self.found((*path, text), f"is given twice, in lines {lines[text]} and {line}", "keep one of them")
            else:
                lines[text] = line
                made[text] = self.from_node(value, (*path, text))
        return made

    def from_object(self, value: Any, path: Path = ()) -> Any:
        self._enter(path)
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        if isinstance(value, dict):
            made = {}
            for key, item in value.items():
                if isinstance(key, str) and not is_text(key):
                    self.found((*path, key), "the key holds characters that are no text", "remove them")
                elif isinstance(key, str):
                    made[key] = self.from_object(item, (*path, key))
                else:
                    self.found((*path, shown(key)), f"the key {shown(key)} is not text", "write text keys")
            return made
        if isinstance(value, list | tuple):
            return [self.from_object(item, (*path, i)) for i, item in enumerate(value)]
        if value is None or type(value) in (bool, int, float, str):
            return value
        self.found(path, f"holds a Python {type(value).__name__}", "write text, a number, true, false, null, a list or a mapping")
        return None

    def pairs(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [key for key, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise Unreadable(f"gives the key {shown(twice)} twice in one object", "keep one of them")
        return made


def _scalar(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    if kind == "int":
        # an int of thousands of digits takes quadratic time to read; any of more than 40 is refused later on
        return int(text, 0 if text[1:2] in ("o", "x") else 10) if len(text) <= 40 else 10**40
    if kind == "float":
        return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
    raise KeyError(kind)


def parse_yaml(text: str) -> tuple[Any, list[Finding]]:
    """Plain data, and what is wrong with single keys and values of it.

    Raises:
        Unreadable: if the text is no YAML, or is nested or aliased beyond reason.
    """
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        raise Unreadable(f"is no YAML: {said}", "correct the syntax there", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        raise Unreadable(f"holds the character {text[error.position]!a}", "remove it", text[: error.position].count("\n") + 1) from None
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        # PyYAML lets some malformed escapes and directives through as these
        raise Unreadable(f"is no YAML: {error}", "correct the syntax") from None
    finally:
        if loader is not None:
            loader.dispose()
    builder = _Builder()
    return (None if node is None else builder.from_node(node)), builder.findings


def parse_json(text: str) -> tuple[Any, list[Finding]]:
    """Plain data of a JSON text; see `parse_yaml`."""
    builder = _Builder()
    try:
        value = json.loads(text, object_pairs_hook=builder.pairs, parse_int=lambda digits: _scalar("int", digits))
    except json.JSONDecodeError as error:
        raise Unreadable(f"is no JSON: {error.msg}", "correct the syntax there", error.lineno) from None
    except RecursionError:
        raise _too_deep() from None
    return builder.from_object(value), builder.findings


def plain(value: Any) -> tuple[Any, list[Finding]]:
    """A copy of a Python value as plain data; see `parse_yaml`."""
    builder = _Builder()
    return builder.from_object(value), builder.findings


def read(source: str | File | dict[str, Any]) -> tuple[str, dict[str, Any], list[Finding]]:
    """What to call a document, its data, and what is wrong with single keys and values of it.

    `source` is a path, a URI of a store, a JSON text (starts with '{') or a dict.

    Raises:
        SpecError: if there is no such document or it can't be read as a mapping.
        StoreError: if its store can't be reached.
    """
    label = "document" if isinstance(source, dict) or str(source).lstrip().startswith("{") else str(source)
    try:
        if isinstance(source, dict):
            value, findings = plain(source)
        elif label == "document":
            value, findings = parse_json(str(source))
        else:
            text = _text(label)
            value, findings = parse_json(text) if label.endswith(".json") else parse_yaml(text)
        if findings and findings[0].path == ():
            raise Unreadable(findings[0].finding, findings[0].remedy)
        if value is None:
            raise Unreadable("is empty", "write a mapping that starts with 'name: '")
        if not isinstance(value, dict):
            raise Unreadable(f"holds {shown(value)}, not a mapping", "write a mapping that starts with 'name: '")
    except Unreadable as error:
        place = f"{label}: line {error.line}" if error.line else label
        raise SpecError.at(place, error.finding, error.remedy) from None
    return label, value, findings


def _text(name: str) -> str:
    if not name.isprintable():
        raise SpecError.at("document", f"no file is called {shown(name)}", "give the path of a file, or a JSON text that starts with '{'")
    try:
        if "://" in name:
            root, _, key = name.rpartition("/")
            data = open_store(root).read(key)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError.at(name, "there is no such document", _neighbours(name)) from None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecError.at(name, f"can't be read: {reason}", "give the path of a readable file") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES} bytes", "give the document, not the data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Unreadable(f"is not UTF-8 (byte 0x{data[error.start]:02x})", "save it as UTF-8", line) from None


def _neighbours(name: str) -> str:
    folder, base = os.path.split(name)
    try:
        known = [file for file in os.listdir(folder or ".") if file.endswith((".yaml", ".yml", ".json"))]
    except OSError:
        return "check the path"
    return one_of(base, known) if known and len(known) <= 30 else "check the path"
