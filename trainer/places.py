"""Where in a document something is, what is said about it, and how a value is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
"""Keys and list positions from the root of a document."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 80


@dataclass(frozen=True)
class Finding:
    """A fault whose place is a path: what was found there, and one thing to do about it."""

    path: Path
    finding: str
    remedy: str


def dotted(path: Path) -> str:
    """`phases.joint.tasks[1]`; keys that would be ambiguous are quoted."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{shown(key)}]"
    return text


def shown(value: Any) -> str:
    """A value as YAML would have it, on one line, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"a mapping of {len(value)}" if value else "{}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "[]"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...{text[-1]}"


def on_one_line(text: str) -> str:
    """Text without line breaks, and with whatever can't be printed escaped."""
    text = " ".join(text.splitlines())
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def is_text(text: str) -> bool:
    """Whether a string holds no control characters but tabs and line breaks, and no halves of surrogate pairs."""
    return not any((char < " " and char not in "\t\n\r") or "\ud800" <= char <= "\udfff" or char == "\x7f" for char in text)


def related(one: Path, other: Path) -> bool:
    """Whether one of two paths leads through the other."""
    return all(a == b for a, b in zip(one, other, strict=False))
