"""`cotrain new`: a document of each kind, which is an example, runs as it stands, and has a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.new_command import kinds
from trainer.check import load_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cotrain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, ["new", *args])


@pytest.mark.parametrize("kind", kinds())
def test_a_document_of_each_kind_is_an_example_that_passes_check(cotrain, kind):
    assert cotrain(kind).exit_code == 0
    text = Path(f"{kind}.yaml").read_text()
    assert text.startswith("# ")
    assert load_spec(f"{kind}.yaml").tasks
    assert text in [example.read_text() for example in (ROOT / "examples").glob("*.yaml")], (
        f"copy trainer/templates/kinds/{kind}.yaml to examples/"
    )


@pytest.mark.parametrize("kind", kinds())
def test_each_kind_has_a_page_that_the_list_leads_to(kind):
    page = ROOT / "docs" / "kinds" / f"{kind}.md"
    assert page.is_file()
    assert f"({kind}.md)" in (ROOT / "docs" / "kinds" / "README.md").read_text()
    for heading in ("## When", "## The document", "## The result", "## Source"):
        assert heading in page.read_text()


def test_nothing_is_overwritten(cotrain):
    Path("mutual.yaml").write_text("mine")
    done = cotrain("mutual")
    assert done.exit_code == 2
    assert "mutual.yaml: is there already" in done.output
    assert Path("mutual.yaml").read_text() == "mine"
    assert cotrain("mutual", "-o", "other.yaml").exit_code == 0
    assert Path("other.yaml").is_file()


def test_it_prints_where_that_is_asked_for(cotrain):
    assert cotrain("mutual", "-o", "-").output == (ROOT / "examples" / "10-mutual.yaml").read_text()
    assert not list(Path().iterdir())


def test_a_kind_that_is_not_there_is_told_with_the_nearest(cotrain):
    done = cotrain("mutaul")
    assert done.exit_code == 2
    assert "did you mean 'mutual'?" in done.output
