"""The key of a result holds the code that made it: after an update nothing stale is found again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import results

TRAINER = Path(results.__file__).parent
PARTS = {
    "data": ["columns", "datasets"],
    "train": ["columns", "models", "objectives", "syncs", "optimizers", "balancers", "mixers"],
    "score": ["columns", "models", "objectives", "metrics"],
    "compare": ["metrics"],
}
NOTHING_OF_A_RESULT = {"errors.py", "catalog.py", "sources.py"}
"""What they do ends in a fault, or in naming a part."""


def imported(source: Path) -> Iterator[Path]:
    """Modules of `trainer` that a file imports, at the top or where it runs."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trainer":
            place = TRAINER.joinpath(*node.module.split(".")[1:])
            for path in (place, *(place / alias.name for alias in node.names)):
                if path.with_suffix(".py").is_file():
                    yield path.with_suffix(".py")


@pytest.mark.parametrize("stage", PARTS)
def test_what_parts_are_made_of_is_in_the_key_of_what_they_make(stage: str) -> None:
    held = {
        file
        for name in results._CODE[stage]
        for file in ((TRAINER / name).rglob("*.py") if (TRAINER / name).is_dir() else [TRAINER / name])
    }
    assert all(file.is_file() for file in held)
    needed = {other for folder in PARTS[stage] for source in (TRAINER / folder).glob("*.py") for other in imported(source)}
    assert len(needed) > len(NOTHING_OF_A_RESULT)
    assert {str(file.relative_to(TRAINER)) for file in needed - held} <= NOTHING_OF_A_RESULT
