"""Whether 'package.module:function' is there, without importing anything.

Importing would run the user's code, and most often import torch. So the module is looked for on the path and
its source is read. What can't be decided that way is left to run time.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from trainer import sources
from trainer.errors import one_of


def trouble(reference: str) -> tuple[str, str] | None:
    """Finding and remedy for a reference that can't be right; None for one that is, or may be."""
    module, _, name = reference.partition(":")
    spec: ModuleSpec | None = None
    importlib.invalidate_caches()
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        if not parts[depth - 1]:
            return f"'{module}' is no name of a module", "write package.module:function"
        if depth > 1 and (spec is None or spec.submodule_search_locations is None):
            return f"module '{'.'.join(parts[: depth - 1])}' is no package", "write package.module:function"
        where = list(spec.submodule_search_locations or []) if spec and depth > 1 else None
        spec = sources.find(full, where)
        if spec is None:
            found_in = f"package '{'.'.join(parts[: depth - 1])}'" if depth > 1 else "the Python path or the current folder"
            return f"there is no module '{full}' in {found_in}", "install its package, or run where it lies"
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"{spec.origin} is no Python: {error}", "correct the syntax there"
    except OSError:
        return None
    names = list(_names(tree))
    if name in names or "*" in names or "__getattr__" in names:
        return None
    known = [made.name for made in tree.body if isinstance(made, ast.FunctionDef | ast.ClassDef)]
    return f"module '{module}' defines no '{name}'", one_of(name, known)


def _names(node: ast.AST) -> Iterator[str]:
    """Names bound at the top level of a module, also below `if`, `try` and `with`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.split(".")[0]) for alias in child.names)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, ast.Lambda):
            yield from _names(child)
