"""docs/spec.md says what the models say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trainer.catalog import CATALOG
from trainer.spec import JointSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("spec_reference", ROOT / "scripts" / "spec_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_page_is_what_the_models_say_today(page):
    assert (ROOT / "docs" / "spec.md").read_text() == page, "run: make docs"


def test_the_page_has_every_part_of_the_catalogue(page):
    for family, kinds in CATALOG.items():
        for kind in kinds if family != "store" else ():
            assert f"### {family} `{'package.module:function' if kind == 'python' else kind}`\n" in page


def test_the_page_has_every_field_of_the_document_with_its_description(page):
    for name, field in JointSpec.model_fields.items():
        assert f"| `{name}` |" in page
        assert field.description in page


def test_every_link_of_the_page_leads_to_a_heading(page):
    headings = {line.lstrip("# ").strip().lower() for line in page.splitlines() if line.startswith("#")}
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links <= headings
