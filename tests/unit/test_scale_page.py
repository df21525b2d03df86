"""docs/scale.md says what the formulas say, and names everything that may be assumed of a cluster."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from trainer.scale import Machines

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()


def test_the_tables_are_what_the_formulas_say_today():
    spec = importlib.util.spec_from_file_location("scale_page", ROOT / "scripts" / "scale_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == PAGE, "run: make docs"


def test_everything_that_is_assumed_is_listed_with_its_default():
    for field in dataclasses.fields(Machines):
        if field.default is not dataclasses.MISSING:
            (row,) = [line for line in PAGE.splitlines() if line.startswith("| `") and f"`{field.name}`" in line]
            assert f"{field.default:g}" in row.rpartition(" | ")[2]
