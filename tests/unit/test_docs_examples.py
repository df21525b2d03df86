"""What the pages say of the program is what the program says: tables, links, pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.cli import main
from trainer import errors
from trainer.catalog import CATALOG
from trainer.metrics_server import Metrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GUIDES = ROOT / "docs" / "guides"


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def rows(text: str, start: str) -> list[list[str]]:
    """The rows of tables whose first cell matches."""
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in cells if re.match(start, row[0])]


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = without_blocks(page)
    text = re.sub(r"`[^`\n]*`", "`", text)  # code is no link
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for path in re.findall(r"\]\(([^)#\s]+)", without_blocks(page)):
            file = (page.parent / path).resolve()
            todo.append(file / "README.md" if file.is_dir() else file)
    assert {page for page in PAGES if "results" not in page.parts} <= reached


def test_metrics_of_the_on_call_page_are_those_that_are_served():
    metrics = Metrics("run", ["one", "other"], None)
    served = {}
    for family in metrics._registry.collect():
        names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
        labels = {label for sample in family.samples for label in sample.labels}
        served |= dict.fromkeys(names, (family.type, labels))
    table = rows((GUIDES / "on-call.md").read_text(), "`cotrain_")
    assert {name.strip("`"): (kind, set(labels.split(", "))) for name, kind, labels, _ in table} == served


def test_events_of_the_on_call_page_are_those_that_are_emitted():
    sources = [file.read_text() for package in ("trainer", "components", "pipelines") for file in (ROOT / package).rglob("*.py")]
    emitted = {name for text in sources for name in re.findall(r'(?:emit\(\s*|"event": )"(\w+)"', text)}
    assert emitted, "events are emitted in another way now: look for them so"
    text = (GUIDES / "on-call.md").read_text()
    told = {name for cells in rows(text.partition("## Events")[2].partition("## ")[0], "`") for name in re.findall(r"`(\w+)`", cells[0])}
    assert told == emitted


def test_exit_codes_of_the_ci_page_are_those_of_the_errors():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CotrainError)]
    table = rows((GUIDES / "ci.md").read_text(), r"\d+$")
    assert sorted(int(code) for code, *_ in table) == sorted({0} | {cls.exit_code for cls in classes})


def test_commands_of_the_readme_are_those_of_the_command_line():
    table = rows((ROOT / "README.md").read_text(), r"`cotrain ")
    assert {cells[0].strip("`").split()[1] for cells in table} == set(main.commands)


@pytest.mark.parametrize("family", ["balancer", "mixer", "model"])
def test_parts_that_the_readme_says_are_there_are_those_of_the_catalogue(family):
    """All of them, unless the row says by `...` that these are examples."""
    (cells,) = rows((ROOT / "README.md").read_text(), f"{family}s$")
    told, there = set(re.findall(r"`(\w+)`", cells[1])), set(CATALOG[family]) - {"python"}
    assert told <= there
    assert told == there or (told and "..." in cells[1])


def test_families_of_parts_have_laws_where_the_page_says():
    table = rows((ROOT / "docs" / "add-a-part.md").read_text(), r"(?!family|---)")
    assert {cells[0] for cells in table} == set(CATALOG) - {"store"}
    for cells in table:
        assert (ROOT / cells[-1].strip("`")).is_file(), cells[-1]
        assert re.search(r"`(\w+)`", cells[1])[1].lower() == cells[0]


@pytest.mark.parametrize(
    "name", ["report-light.png", "report-dark.png", "curves-light.png", "curves-dark.png", "pipeline.svg", "step.svg", "balancers.svg"]
)
def test_pictures_are_small(name):
    assert 1_000 < (ROOT / "docs" / "pictures" / name).stat().st_size < 200_000
