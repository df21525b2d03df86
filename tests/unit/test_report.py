"""The report as text: complete, escaped, the same for the same inputs, and whole for every odd job."""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_inputs import report_inputs

from trainer import charts
from trainer.report import render, write_report
from trainer.report_tasks import line
from trainer.wording import cosine, count, decimals, seconds, share, value

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', r"$\frac{1}{$ ]]> &amp;", "日本語 task", "{{ 7 * 7 }}"]
ODD = {
    "one task": {"tasks": 1},
    "no independent training": {"independent": False},
    "a champion": {"champion": True, "seeds": 3},
    "a champion but no independent training": {"champion": True, "independent": False},
    "metrics that are not defined": {"nan": True, "champion": True},
    "a failed gate": {"passed": False},
    "no validation records": {"valid": False},
    "sixteen tasks": {"tasks": 16, "points": 4, "looks": 2},
    "one record": {"points": 1},
    "hostile names": {"tasks": 5, "names": HOSTILE, "champion": True, "looks": 2},
    "one look": {"looks": 1},
}


class Page(HTMLParser):
    """Every start tag with its attributes, the text outside of <style>, and the tags that were left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest) -> tuple[dict, str]:
    return _odd(request.param)


@cache  # not the fixture's scope: tests come in any order
def _odd(job: str) -> tuple[dict, str]:
    inputs = report_inputs(**{"points": 12, **ODD[job]})
    return inputs, render(**inputs)


def test_every_task_is_shown_with_its_verdict(odd):
    inputs, html = odd
    page = Page(html)
    cards = [attrs for _, attrs in page.tags if "data-task" in attrs]
    assert [card["data-task"] for card in cards] == list(inputs["verdict"]["tasks"])
    for card, entry in zip(cards, inputs["verdict"]["tasks"].values(), strict=True):
        against = entry["vs_independent"] or entry["vs_champion"]
        known = against and against["difference"] is not None
        assert f"tone-{against['verdict'] if known else 'none'}" in (card["class"] or "").split()


def test_the_page_is_well_formed_and_loads_and_runs_nothing(odd):
    page = Page(odd[1])
    assert page.open == []
    assert len(page.ids()) == len(set(page.ids()))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed", "form", "base", "image", "foreignobject"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "srcset", "action", "formaction")]
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,"))
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", odd[1])


def test_every_reference_inside_the_page_leads_somewhere(odd):
    page = Page(odd[1])
    wanted = {(attrs.get(name) or "").removeprefix("#") for _, attrs in page.tags for name in ("href", "xlink:href", "aria-labelledby")}
    wanted |= set(re.findall(r"url\(#([\w-]+)\)", odd[1]))
    assert wanted - {"", "data:,"} <= set(page.ids())


def test_charts_are_valid_svg_with_words_for_those_who_can_not_see_them(odd):
    drawings = re.findall(r"<svg.*?</svg>", odd[1], re.S)
    assert len(drawings) >= len(odd[0]["verdict"]["tasks"])
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert re.search(r"#0[1-9]0[1-9]0[1-9]|font-family", drawing) is None


def test_the_same_inputs_give_the_same_page_whatever_the_settings_of_matplotlib():
    import matplotlib

    inputs = report_inputs(tasks=1, seeds=2)
    first = render(**copy.deepcopy(inputs))
    with matplotlib.rc_context({"font.size": 40, "lines.linewidth": 9, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert render(**inputs) == first


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_is_shown(name):
    inputs = report_inputs(tasks=1, names=[name])
    inputs["spec"]["name"] = inputs["timings"][0]["step"] = name
    inputs["outcome"] = {"published": None, "reasons": [name], "versions": {name: name}}
    inputs["data"] = {name: inputs["data"]["reviews"]}
    page = Page(render(**inputs))
    assert page.text.count(re.sub(r"\s+", " ", name)) >= 8
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]


def test_a_failed_gate_says_why_nothing_was_published():
    page = Page(render(**report_inputs(passed=False, points=2)))
    assert "gate failed" in page.text
    assert "nothing was published: price is worse than independent training by 0.031" in page.text
    assert "✗ failed worst_drop on price" in page.text


def test_what_was_published_is_named():
    page = Page(render(**report_inputs(tasks=1, points=2)))
    assert "published and promoted to champion: s3://models/reviews/models/reviews/versions/2026-02-11-9c1e" in page.text


def test_the_headline_counts_the_tasks_that_were_helped_and_hurt():
    inputs = report_inputs(points=2)
    assert "Training jointly helped 2 and hurt 1 of 4 tasks" in Page(render(**inputs)).text
    inputs["verdict"]["helped"] = inputs["verdict"]["hurt"] = 0
    assert "Training jointly changed no task for better or worse." in Page(render(**inputs)).text


def test_only_weights_that_move_are_drawn():
    assert 'id="weights"' in render(**report_inputs(tasks=1, weighted=True))
    assert 'id="weights"' not in render(**report_inputs(tasks=1, weighted=False))


def test_how_tasks_pull_is_shown_where_somebody_looked():
    assert 'id="pulls"' not in render(**report_inputs(points=2))
    page = Page(render(**report_inputs(points=2, looks=6, seeds=2)))
    assert "pulls" in page.ids()
    assert "from 12 looks over 2 seeds" in page.text
    assert "rating and department seem to help each other: mean cosine +0.3" in page.text
    assert re.search(r"department did worse jointly than alone [^;]*It conflicts most with \w+ \(mean cosine −0", page.text)


def test_a_cell_of_the_heat_map_shows_the_mean_cosine_with_its_sign():
    inputs = report_inputs(tasks=3, points=2, looks=2)
    looks = [record for record in inputs["runs"]["joint"][0]["history"] if record["split"] == "look"]
    for record, by in zip(looks, (0.1, -0.1), strict=True):
        record["cosine"] = {
            "rating": {"rating": 1.0, "recommended": 0.5 + by, "department": -0.25 + by},
            "recommended": {"rating": 0.5 + by, "recommended": 1.0},
            "department": {"rating": -0.25 + by, "department": 1.0},
        }
    matrix = re.search(r'<table class="matrix pull">.*?</table>', render(**inputs), re.S)[0]
    cells = re.findall(r'<td class="(\w+)" style="--p:([\d.]+)" title="[^"]*">([^<]*)</td>', matrix)
    assert cells == [
        ("self", "0", ""), ("with", "1.000", "+0.50"), ("against", "0.500", "−0.25"),
        ("with", "1.000", "+0.50"), ("self", "0", ""), ("none", "0", ""),
        ("against", "0.500", "−0.25"), ("none", "0", ""), ("self", "0", ""),
    ]  # fmt: skip
    assert 'title="rating and department: mean cosine −0.25, below 0 in 100\xa0% of 2 looks"' in matrix


def test_budgets_that_come_to_the_same_grouping_share_a_row():
    text = Page(render(**report_inputs(points=2, looks=6))).text
    assert "1 rating, recommended, department, price" in text
    assert "2 or more rating, department recommended, price" in text


def test_looks_that_found_nothing_finite_leave_out_their_curves():
    inputs = report_inputs(points=2, looks=2)
    for record in inputs["runs"]["joint"][0]["history"]:
        if record["split"] == "look":
            record |= {"faithful": math.nan, "worse": None, "cosine": {a: dict.fromkeys(row, None) for a, row in record["cosine"].items()}}
    page = Page(render(**inputs))
    assert "pulls" in page.ids()
    assert "Tasks made worse" not in page.text


def test_values_without_a_modality_stand_below_those_with_all():
    inputs = report_inputs(tasks=2, seeds=2, points=2)
    assert 'id="without"' not in render(**inputs)
    name, entry = next(iter(inputs["scores"].items()))
    for role, values in {"joint": (0.25, 0.75), "independent": (0.5, None)}.items():
        for run, value_ in zip(entry["models"][role], values, strict=True):
            run["metrics"][entry["primary"]]["value"] = 0.875
            run["without"] = {"<image>": {entry["primary"]: value_}}
    page = Page(render(**inputs))
    assert f"{name} {entry['primary']} nothing 0.875 ± 0.000 0.875 ± 0.000 <image> 0.500 ± 0.354 –" in page.text
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"].count("#without") == 1


def test_confusions_are_summed_over_the_seeds():
    inputs = report_inputs(tasks=1, seeds=2)
    for run, cells in zip(inputs["scores"]["rating"]["models"]["joint"], ([[1, 2], [3, 4]], [[10, 20], [30, 40]]), strict=True):
        run["confusion"] = cells
    inputs["scores"]["rating"] |= {"classes": ["no", "yes"]}
    inputs["scores"]["rating"]["models"]["independent"] = []
    matrix = re.search(r'<table class="matrix">.*?</table>', render(**inputs), re.S)[0]
    assert [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", matrix)] == [11, 22, 33, 44]


def test_many_classes_are_shown_as_their_worst_confusions():
    inputs = report_inputs(tasks=1)
    k = 30
    cells = [[0] * k for _ in range(k)]
    cells[4][9], cells[7][2], cells[3][3] = 50, 70, 1000
    scores = inputs["scores"]["rating"]
    scores["classes"] = [f"kind {i}" for i in range(k)]
    scores["models"] = {"joint": [{"confusion": cells}], "independent": [{"confusion": [[0] * k for _ in range(k)]}]}
    text = Page(render(**inputs)).text
    assert "the 2 most frequent of 30 classes" in text
    assert text.index("kind 7 kind 2 70 100 % 0") < text.index("kind 4 kind 9 50")


def test_a_reused_step_says_so():
    inputs = report_inputs(tasks=1)
    inputs["timings"] = [{"step": "train joint", "seconds": 2.0, "reused": True}, {"step": "publish", "seconds": 1.0, "reused": False}]
    assert re.search(r"train joint reused 2\.0\ss publish 1\.0\ss", Page(render(**inputs)).text)


def test_the_document_is_there_as_yaml():
    import yaml

    inputs = report_inputs(tasks=1, points=2)
    text = [text for text in Page(render(**inputs)).words if text.startswith("name: reviews")]
    assert yaml.safe_load(text[0]) == inputs["spec"]


def test_absent_files_leave_out_their_sections_only():
    inputs = report_inputs() | {"runs": {"joint": [], "independent": {}}, "data": {}, "scores": {}, "timings": [], "outcome": {}}
    inputs["verdict"].pop("cost"), inputs["verdict"].pop("gate")
    page = Page(render(**inputs))
    assert "▲ better" in page.text
    assert not {"curves", "weights", "confusions"} & set(page.ids())


def test_long_histories_make_no_heavier_page():
    assert len(render(**report_inputs(tasks=2, seeds=3, points=4000))) < 300_000


def test_curves_of_several_phases_lie_end_to_end():
    inputs = report_inputs(tasks=1)
    history = [{"split": "train", "phase": phase, "step": step, "loss": {"rating": 1.0}} for phase in ("a", "b") for step in (10, 20)]
    inputs["runs"] = {"joint": [{"result": {}, "history": history}], "independent": {}}
    again = copy.deepcopy(inputs)
    for record, step in zip(again["runs"]["joint"][0]["history"], (10, 20, 30, 40), strict=True):
        record |= {"phase": "a", "step": step}
    assert render(**inputs) == render(**again)


def test_curves_of_phases_that_take_turns_lie_over_the_steps_of_all_of_them():
    turns = [(phase, step) for turn in range(1, 4) for phase, step in (("a", 10 * turn), ("b", 20 * turn))]
    history = [{"split": "train", "phase": phase, "step": step, "loss": {phase: float(step)}} for phase, step in turns]
    assert line(history, "train", "loss", "a") == [(10, 10), (40, 20), (70, 30)]
    assert line(history, "train", "loss", "b") == [(30, 20), (60, 40), (90, 60)]


def test_thinning_keeps_the_ends_and_the_mean():
    run = [(float(x), math.sin(x / 90)) for x in range(5000)]
    thin = charts._thin(run)
    assert len(thin) == charts.POINTS
    assert (thin[0], thin[-1]) == (run[0], run[-1])
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in run) / len(run), abs=0.01)


def test_a_seed_that_stopped_early_does_not_bend_the_mean():
    assert charts._mean([[(1, 4.0), (2, 2.0), (3, 1.0)], [(1, 6.0), (2, 4.0)]]) == [(1, 5.0), (2, 3.0)]


def test_a_report_is_a_result_that_is_made_once(tmp_path):
    inputs = report_inputs(tasks=1, points=3)
    first, second = (write_report(str(tmp_path), **copy.deepcopy(inputs)) for _ in range(2))
    assert (first.reused, second.reused) == (False, True)
    html = (second.folder / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "deepspeed" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (value(0.95312, 3), "0.953"), (value(-0.0203, 3, sign=True), "−0.020"), (value(math.nan), "–"),
        (value(None), "–"), (value("x"), "–"),
        (value(12345.6, 0), "12,346"), (value(1e-7, 3), "1.0e−07"), (value(0, 2, sign=True), "+0.00"),
        (cosine(0.314), "+0.31"), (cosine(-0.02), "−0.02"), (cosine(-0.001), "0.00"), (cosine(None), "–"),
        (count(99_999), "99,999"), (count(123_456), "123\xa0k"), (count(1_283_411), "1.28\xa0M"), (count(4.2e12), "4.20\xa0T"),
        (count(None), "–"),
        (seconds(0.419), "0.42\xa0s"), (seconds(8.21), "8.2\xa0s"), (seconds(59.96), "1\xa0min 00\xa0s"),
        (seconds(7500), "2\xa0h 05\xa0min"),
        (share(0.5), "50\xa0%"), (share(0.003), "0.3\xa0%"), (share(0), "0\xa0%"), (share(math.nan), "–"),
    ],
)  # fmt: skip
def test_numbers_read_well(text, shown):
    assert text == shown


@pytest.mark.parametrize(
    ("width", "places"), [(0.028, 3), (0.28, 2), (1.0, 1), (24.0, 0), (5000.0, 0), (math.nan, 3), (0.0, 3), (1e-12, 6)]
)
def test_decimals_show_two_digits_of_the_interval(width, places):
    assert decimals(width) == places


def test_leaks_conflicts_and_new_labels_are_told_with_their_rows():
    page = Page(render(**report_inputs(tasks=5, points=2)))
    assert "! 3 rows of test equal a row of train, compared by text row 17 (train) = row 18,204 (test)" in page.text
    assert "! 2 groups of equal rows have different labels (4 rows)" in page.text
    assert "! 2 rows of test have a style that no training row has: style new" in page.text


def test_clean_data_is_called_clean():
    inputs = report_inputs(tasks=1)
    report = inputs["data"]["reviews"]["report"]
    report["duplicates"] = {
        "columns": ["text"],
        "across": {"train-test": {"rows": 0, "examples": []}},
        "within": {},
        "conflicts": {"groups": 0},
    }
    report["modalities"] = {"columns": ["text", "image"], "missing": {"text": {"rows": 0}, "image": {"rows": 0}}, "none": 0}
    text = Page(render(**inputs)).text
    assert "✓ No row of one split equals a row of another, compared by text" in text
    assert "✓ Every row has all of text, image" in text
    report["modalities"]["missing"]["image"]["rows"] = 41
    assert "! Rows that lack a modality: 41 lack image" in Page(render(**inputs)).text


def test_few_classes_keep_their_order_and_many_show_the_largest():
    inputs = report_inputs(tasks=1)
    splits = inputs["data"]["reviews"]["report"]["columns"]["rating"]["splits"]
    shown = r'<span class="clip">([^<]*)</span>'
    splits["train"]["balance"] = {"one": 1, "two": 30, "three": 2}
    assert re.findall(shown, render(**inputs)) == ["one", "two", "three"]
    splits["train"]["balance"] = {f"k{i}": i for i in range(30)}
    html = render(**inputs)
    assert re.findall(shown, html) == [f"k{i}" for i in range(29, 17, -1)]
    assert "and 18 smaller classes" in html


def test_what_is_not_defined_says_why():
    text = Page(render(**report_inputs(tasks=1, nan=True, points=2))).text
    assert "? undefined" in text
    assert "joint: all 3523 test rows have the same target" in text
