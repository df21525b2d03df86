"""The report in a real Chromium, at the width of a desktop and of a phone, in light and in dark."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from report_inputs import report_inputs

from trainer.report import render

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'cotrain[dev]'")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "a" * 90,
    "日本語 </style></svg>",
    "{{ 7 * 7 }}",
]
JOBS = {
    "four": report_inputs(tasks=4, seeds=3, champion=True, looks=12),
    "one": report_inputs(tasks=1, independent=False, valid=False),
    "sixteen": report_inputs(tasks=16, seeds=2, passed=False, points=20, looks=8),
    "undefined": report_inputs(tasks=3, nan=True),
    "hostile": report_inputs(tasks=5, names=HOSTILE, champion=True, looks=2),
}
# the luminance contrast of WCAG 2.1 between two CSS colours `rgb(r, g, b)`
CONTRAST = """([a, b]) => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
                       return .2126 * r + .7152 * g + .0722 * b };
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + .05) / (y + .05) }"""


@pytest.fixture(scope="module")
def browser():
    names = [os.environ.get("COTRAIN_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on PATH: install the package 'chromium', or set COTRAIN_CHROMIUM")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=[*quiet, "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file per job: pages are opened from disk, as a colleague would who was sent one."""
    folder = tmp_path_factory.mktemp("reports")
    for name, inputs in JOBS.items():
        (folder / f"{name}.html").write_text(render(**inputs), encoding="utf-8")
    return folder


@pytest.fixture
def open_page(browser, files):
    """`open_page(job, viewport, scheme)`; in the end nothing may have been asked of a network or complained about."""
    pages, complaints, requests = [], [], []

    def open_page(job, viewport=DESKTOP, scheme="light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((files / f"{job}.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    opened = {page.url.partition("#")[0] for page in pages}
    for page in pages:
        page.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= opened


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("job", JOBS)
def test_nothing_sticks_out_at_the_side(open_page, job, viewport):
    page = open_page(job, viewport)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= viewport["width"]
    # what is wider scrolls in a frame of its own; all else ends within its card
    wide = page.evaluate("""[...document.querySelectorAll('.card *')].filter(e => !e.closest('.scroll, pre, svg'))
        .filter(e => e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right + 1)
        .map(e => e.outerHTML.slice(0, 200))""")
    assert wide == []


@pytest.mark.parametrize("job", ["four", "one", "sixteen", "undefined"])
def test_every_verdict_can_be_read_without_scrolling(open_page, job):
    page = open_page(job)
    cards = page.locator("[data-task]")
    assert cards.count() == len(JOBS[job]["verdict"]["tasks"])
    for card, entry in zip(cards.all(), JOBS[job]["verdict"]["tasks"].values(), strict=True):
        found = entry["vs_independent"]
        word = card.locator(".word").first
        assert (found["verdict"] if found else "not compared") in word.inner_text()
        box = word.bounding_box()
        assert box["y"] + box["height"] <= DESKTOP["height"]


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("job", ["four", "one", "sixteen"])
def test_charts_are_drawn_and_their_text_is_large_enough_to_read(open_page, job, viewport):
    page = open_page(job, viewport)
    charts = page.locator("svg.chart")
    assert charts.count() >= len(JOBS[job]["verdict"]["tasks"])
    for width, height in charts.evaluate_all("all => all.map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"):
        assert width >= 250
        assert height >= 40
    # the height of a line as drawn is at least that of its font
    texts = page.evaluate("""[...document.querySelectorAll('svg.chart text')].map(e => parseFloat(getComputedStyle(e).fontSize)
        * e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width)""")
    assert texts
    assert min(texts) >= 9


def test_labels_of_charts_stay_on_their_cards(open_page):
    outside = """[...document.querySelectorAll('svg.chart text')].filter(e => { const t = e.getBoundingClientRect(),
        c = e.closest('.card').getBoundingClientRect(); return t.left < c.left || t.right > c.right }).map(e => e.textContent)"""
    for viewport in (DESKTOP, PHONE):
        assert open_page("four", viewport).evaluate(outside) == []


def test_hostile_names_are_shown_and_do_nothing(open_page):
    page = open_page("hostile")
    assert page.title() == "reviews: joint training report"
    assert page.locator("script, img, iframe").count() == 0
    for name in HOSTILE:
        assert page.locator(".verdict h3").get_by_text(name, exact=True).count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(open_page, scheme):
    page = open_page("four", scheme=scheme)
    colour = """([selector, property]) => { const e = document.querySelector(selector); return getComputedStyle(e)[property] }"""
    card, ground = (page.evaluate(colour, [place, "backgroundColor"]) for place in (".card", "body"))
    for behind, places in {
        card: [".tone-better .word", ".tone-worse .word", ".tone-same .word", ".card .small", ".card h3"],
        ground: [".lead", "h2"],
    }.items():
        for place in places:
            assert page.evaluate(CONTRAST, [page.evaluate(colour, [place, "color"]), behind]) >= 4.5, place
    inks = set(page.evaluate("[...document.querySelectorAll('svg.chart text')].map(e => getComputedStyle(e).fill)"))
    assert len(inks) >= 3
    for ink in inks:
        assert page.evaluate(CONTRAST, [ink, card]) >= 4.5
    strokes = page.evaluate("[...document.querySelectorAll('svg.chart path')].map(e => getComputedStyle(e).stroke)")
    assert max(page.evaluate(CONTRAST, [stroke, card]) for stroke in set(strokes) if stroke.startswith("rgb")) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cosines_stand_out_from_their_shades(open_page, scheme):
    page = open_page("sixteen", PHONE, scheme)
    pixel = """([cell]) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = getComputedStyle(cell).backgroundColor;
        c.fillRect(0, 0, 1, 1); return `rgb(${[...c.getImageData(0, 0, 1, 1).data].slice(0, 3)})` }"""
    shades = {kind: page.locator(f".pull td.{kind}").evaluate_all(f"all => all.map(e => ({pixel})([e]))") for kind in ("with", "against")}
    ink = page.locator(".pull td.with").first.evaluate("e => getComputedStyle(e).color")
    assert all(page.evaluate(CONTRAST, [ink, shade]) >= 4.5 for found in shades.values() for shade in set(found))
    assert not set(shades["with"]) & set(shades["against"])


def test_names_of_tasks_stay_in_view_when_a_wide_heat_map_is_scrolled(open_page):
    page = open_page("sixteen", PHONE)
    frame = page.locator(".scroll:has(.pull)")
    assert frame.evaluate("e => { e.scrollLeft = 1e6; return e.scrollLeft }") > 0
    name, edge = (place.bounding_box() for place in (page.locator(".pull tbody th").first, frame))
    assert edge["x"] - 1 <= name["x"] <= edge["x"] + 8


def test_dark_is_dark_and_light_is_light(open_page):
    ground = {
        scheme: open_page("one", scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor") for scheme in ("light", "dark")
    }
    brightness = {scheme: sum(map(int, re.findall(r"\d+", colour)[:3])) for scheme, colour in ground.items()}
    assert brightness["dark"] < 120
    assert brightness["light"] > 650


def test_the_document_opens_without_any_script(open_page):
    page = open_page("four")
    text = page.locator("pre")
    assert not text.is_visible()
    page.get_by_text("The document with every default written out").click()
    assert text.is_visible()
    assert "text_transformer" in text.inner_text()


def test_links_lead_to_sections(open_page):
    page = open_page("four", PHONE)
    for link in page.locator("nav a").all():
        link.click()
        assert page.locator("#" + page.url.partition("#")[2]).is_visible()
