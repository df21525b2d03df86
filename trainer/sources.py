"""The source of 'package.module:function', found and digested without importing anything.

Importing would run the user's code, and most often import torch. So a module is looked for on the path, its source is read, and
what it imports is followed as far as it is the user's own: modules that lie beside it, and in an installed package the package
itself. Libraries don't count, nor does `trainer`, whose code is in every key already.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_INSTALLED = ("site-packages", "dist-packages")
_OURS = __name__.partition(".")[0]


def find(name: str, where: list[str] | None) -> ModuleSpec | None:
    """Where a module is: among the folders of its package, or, for None, on the path and in the current folder."""
    if where is None:
        spec = PathFinder.find_spec(name, [os.getcwd(), *sys.path])
        if spec is not None:
            return spec
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, where)
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            return spec
    return None


def source_digest(reference: str) -> str:
    """SHA-256 (hex) of the module of a reference and of the user's own modules that it imports, wherever they are installed.

    What is imported by a name that is only known at run time is not seen. A module that is not there counts as empty.
    """
    importlib.invalidate_caches()
    start = reference.partition(":")[0]
    first = find(start.partition(".")[0], None)
    home = _home(first) if first else None
    files: dict[str, Path] = {}
    wanted = [start]
    while wanted:
        for name, file in _chain(wanted.pop()):
            if name in files or not _own(name, file, start, home):
                continue
            files[name] = file
            wanted += _read(file, file.read_bytes(), name)[1]
    sha = hashlib.sha256()
    for name, file in sorted(files.items()):
        sha.update(f"{name}\0{_read(file, file.read_bytes(), name)[0]}\0".encode())
    return sha.hexdigest()


def code_of(document: Any) -> dict[str, str]:
    """Digests of the code behind every `kind: package.module:function` of a document, or of a part of one, by reference."""
    return {reference: source_digest(reference) for reference in sorted(set(_references(document)))}


def _references(thing: Any) -> Iterator[str]:
    if isinstance(thing, Mapping):
        kind = thing.get("kind")
        if isinstance(kind, str) and REFERENCE.fullmatch(kind):
            yield kind
        for part in thing.values():
            yield from _references(part)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _references(part)


def _chain(name: str) -> Iterator[tuple[str, Path]]:
    """The files that importing a module runs: those of its packages, then its own. Nothing after the first that is not there."""
    where: list[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        spec = find(full, where)
        if spec is None:
            return
        if spec.origin and Path(spec.origin).is_file():
            yield full, Path(spec.origin)
        if spec.submodule_search_locations is None:
            return
        where = list(spec.submodule_search_locations)


def _home(spec: ModuleSpec) -> Path | None:
    """The folder that a module of the top level lies in."""
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    return Path(spec.origin).resolve().parent if spec.origin and Path(spec.origin).is_file() else None


def _own(name: str, file: Path, start: str, home: Path | None) -> bool:
    top = name.partition(".")[0]
    if top == start.partition(".")[0]:
        return True
    if top == _OURS or home is None or home.name in _INSTALLED:
        return False
    return file.resolve().is_relative_to(home) and not set(_INSTALLED) & set(file.resolve().parts)


@lru_cache(maxsize=4096)
def _read(file: Path, source: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of what a file says, and the modules it may import; for `from a import b` both a and a.b."""
    try:
        tree = ast.parse(source) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError, RecursionError):
        tree = ast.Module([], [])
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return hashlib.sha256(source).hexdigest(), tuple(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
