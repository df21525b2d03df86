"""Charts of the report as inline SVG: drawn by matplotlib, coloured by the page's CSS.

Colours leave here as CSS variables (`var(--joint)`), so that one drawing serves light and dark mode. Text stays text:
it scales, is searched and read aloud. The same numbers always give the same bytes.

All charts are `WIDTH` units wide with text of `TEXT` units; a page that shows them 340 px wide shows text of 10 px.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360
TEXT = 11
POINTS = 120
"""Points kept of a line; longer ones are averaged in bins."""

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
# colours that nobody would choose: each stands for a CSS variable until the drawing is done
_INK = {
    "joint": "#010101", "independent": "#020202", "champion": "#030303", "ink": "#040404",
    "faint": "#050505", "grid": "#060606", "better": "#070707", "worse": "#080808", "same": "#090909",
}  # fmt: skip
_VARIABLE = {colour: f"var(--{name})" for name, colour in _INK.items()}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "cotrain", "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False, "axes.unicode_minus": True, "font.size": TEXT, "xtick.labelsize": TEXT, "ytick.labelsize": TEXT,
    "text.color": _INK["ink"], "xtick.color": _INK["faint"], "ytick.color": _INK["faint"], "xtick.labelcolor": _INK["ink"],
    "ytick.labelcolor": _INK["ink"], "axes.edgecolor": _INK["grid"], "grid.color": _INK["grid"], "axes.labelcolor": _INK["ink"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "xtick.major.size": 0, "ytick.major.size": 0,
    "grid.linewidth": 0.8, "axes.axisbelow": True, "path.simplify": False,
}  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """A value with its interval, and the seeds it is the mean of."""

    role: str
    value: float
    low: float = nan
    high: float = nan
    seeds: Sequence[float] = ()


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps, once per seed: each run is a list of (step, value)."""

    role: str
    runs: Sequence[Sequence[tuple[float, float]]] = field(default_factory=list)
    dashed: bool = False


def whiskers(values: Sequence[Dot], differences: Sequence[Dot], higher_is_better: bool, label: str) -> str:
    """Values with intervals, one row each; below, on an axis of their own, joint minus each of the others.

    `differences` name in `role` what joint is compared with. `label` is read aloud instead of the drawing.
    """
    left = 88
    rows = [max(len(values), 1), len(differences)]
    height = 26 * sum(rows) + 26 + (52 if differences else 0)
    with _figure(height) as figure:
        top = height - 4
        upper = _axes(figure, left, top - 26 * rows[0], WIDTH - left - 14, 26 * rows[0])
        _dots(upper, values, [dot.role for dot in values], {dot.role: dot.role for dot in values})
        if differences:
            lower = _axes(figure, left, 22, WIDTH - left - 14, 26 * rows[1])
            lower.axvline(0, color=_INK["faint"], linewidth=1.2)
            verdict = {dot.role: _direction(dot, higher_is_better) for dot in differences}
            _dots(lower, differences, [f"vs {dot.role}" for dot in differences], verdict, zero=True)
            side: dict[str, Any] = {"transform": lower.transAxes, "va": "bottom", "fontsize": TEXT - 0.5, "color": _INK["faint"]}
            lower.text(1, 1.04, "joint better →" if higher_is_better else "joint worse →", ha="right", **side)
            lower.text(0, 1.04, "← joint worse" if higher_is_better else "← joint better", ha="left", **side)
        return _svg(figure, height, label)


def curves(lines: Sequence[Curve], label: str) -> str:
    """Each seed thin, their mean bold; the last point of each bold solid line is labelled with its role."""
    height = 190
    with _figure(height) as figure:
        plot = _axes(figure, 46, 34, WIDTH - 46 - 80, height - 34 - 8)
        seen: list[float] = []
        ends: list[tuple[float, str]] = []
        labelled: set[str] = set()
        for line in sorted(lines, key=lambda line: (not line.dashed, line.role == "joint")):
            runs = [thin for run in line.runs if (thin := _thin(run))]
            colour, dash = _INK[line.role], (0, (2.2, 1.8)) if line.dashed else "-"
            mean = _mean(runs)
            for run in runs if len(runs) > 1 else []:
                plot.plot(*zip(*run, strict=True), color=colour, alpha=0.4, linewidth=0.7, linestyle=dash)
            if mean:
                plot.plot(*zip(*mean, strict=True), color=colour, linewidth=1.3 if line.dashed else 2, linestyle=dash)
            seen += [y for run in [*runs, mean] for _, y in run if isfinite(y)]
        for line in sorted(lines, key=lambda line: line.dashed):
            last = next((y for _, y in reversed(_mean([_thin(run) for run in line.runs])) if isfinite(y)), None)
            if last is not None and line.role not in labelled:
                labelled.add(line.role)
                ends.append((last, line.role))
        if not seen:
            return ""
        low, high = min(seen), max(seen)
        if low > 0 and high / low > 40:
            plot.set_yscale("log")
        plot.set_xlabel("step", fontsize=TEXT, labelpad=2)
        _ticks(plot, x=5, y=5)
        _end_labels(plot, ends)
        return _svg(figure, height, label)


def highlight(lines: Mapping[str, Sequence[tuple[float, float]]], name: str, top: float, label: str) -> str:
    """One line of many in bold, the others faint behind it, on an axis from 0 to `top` that all such charts share."""
    height = 130
    with _figure(height) as figure:
        plot = _axes(figure, 46, 34, WIDTH - 46 - 14, height - 34 - 8)
        for other, run in lines.items():
            if other != name and run:
                plot.plot(*zip(*_thin(run, POINTS // 2), strict=True), color=_INK["faint"], alpha=0.35, linewidth=0.7)
        if lines[name]:
            plot.plot(*zip(*_thin(lines[name]), strict=True), color=_INK["joint"], linewidth=2)
        plot.set_ylim(0, top)
        plot.set_xlabel("step", fontsize=TEXT, labelpad=2)
        _ticks(plot, x=5, y=4)
        return _svg(figure, height, label)


def between(runs: Sequence[Sequence[tuple[float, float]]], low: float, high: float, label: str) -> str:
    """One quantity of joint training that lies between two bounds: each seed thin, their mean bold."""
    height = 150
    with _figure(height) as figure:
        plot = _axes(figure, 46, 34, WIDTH - 46 - 14, height - 34 - 8)
        thin = [_thin(run) for run in runs]
        for run in thin if len(thin) > 1 else []:
            plot.plot(*zip(*run, strict=True), color=_INK["joint"], alpha=0.4, linewidth=0.7)
        if mean := _mean(thin):
            plot.plot(*zip(*mean, strict=True), color=_INK["joint"], linewidth=2, marker="o", markersize=3 if len(mean) < 30 else 0)
        room = 0.04 * (high - low)
        plot.set_ylim(low - room, high + room)
        plot.set_xlabel("step", fontsize=TEXT, labelpad=2)
        _ticks(plot, x=5, y=4)
        return _svg(figure, height, label)


def _direction(dot: Dot, higher_is_better: bool) -> str:
    if not (isfinite(dot.low) and isfinite(dot.high)) or dot.low <= 0 <= dot.high:
        return "same"
    return "better" if (dot.low > 0) == higher_is_better else "worse"


def _dots(plot: Axes, dots: Sequence[Dot], labels: Sequence[str], colours: Mapping[str, str], zero: bool = False) -> None:
    """Rows from the top: whisker, dot, a small mark per seed."""
    for row, dot in enumerate(dots):
        colour = _INK[colours[dot.role]]
        if isfinite(dot.low) and isfinite(dot.high):
            plot.plot([dot.low, dot.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        if len(dot.seeds) > 1:
            plot.plot(dot.seeds, [row - 0.3] * len(dot.seeds), "|", color=colour, markersize=5, markeredgewidth=1)
        if isfinite(dot.value):
            plot.plot([dot.value], [row], {"joint": "o", "independent": "D", "champion": "s"}[dot.role], color=colour, markersize=7)
    finite = [x for dot in dots for x in (dot.value, dot.low, dot.high, *dot.seeds) if isfinite(x)] + [0.0] * zero
    if not finite:
        plot.text(0.5, 0.5, "not defined", transform=plot.transAxes, ha="center", va="center", color=_INK["faint"])
    low, high = (min(finite), max(finite)) if finite else (0, 1)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    plot.set_xlim(low - room, high + room)
    plot.set_ylim(max(len(dots), 1) - 0.5, -0.5)
    plot.set_yticks(range(len(dots)), labels)
    plot.xaxis.grid(True)
    _ticks(plot, x=5)


def _end_labels(plot: Axes, ends: Sequence[tuple[float, str]]) -> None:
    """Names at the right edge, at the height of each line's end, pushed apart where they would overlap."""
    plot.set_ylim(plot.get_ylim())  # asks for the limits, which are lazy until then
    gap = (TEXT + 2) / plot.get_window_extent().height
    placed = -inf
    at = sorted((plot.transAxes.inverted().transform(plot.transData.transform((0, y)))[1], role) for y, role in ends)
    for position, (height, role) in enumerate(at):
        height = max(min(height, 1 - (len(at) - 1 - position) * gap), placed + gap, 0.02)
        placed = height
        plot.text(1.02, height, role, transform=plot.transAxes, va="center", color=_INK[role], fontweight="bold", clip_on=False)


def _thin(run: Sequence[tuple[float, float]], points: int = POINTS) -> list[tuple[float, float]]:
    """At most `points` points: means over bins of equal count, the first and last point as they are."""
    run = list(run)
    if len(run) <= points:
        return run
    inner, size = run[1:-1], (len(run) - 2) / (points - 2)
    bins = [inner[round(i * size) : round((i + 1) * size)] for i in range(points - 2)]
    return [run[0], *(tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in bins if part), run[-1]]  # type: ignore[list-item]


def _mean(runs: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over the seeds, at the steps that all of them have: one seed that stopped early must not bend the rest."""
    tables = [dict(run) for run in runs if run]
    if not tables:
        return []
    shared = [x for x in tables[0] if all(x in table for table in tables)]
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in shared]


def _ticks(plot: Axes, x: int, y: int | None = None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    plot.xaxis.set_major_locator(MaxNLocator(x, steps=[1, 2, 5, 10], prune=None))
    plot.xaxis.set_major_formatter(FuncFormatter(_tick))
    if y is not None:
        log = plot.get_yscale() == "log"
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 3)) if log else MaxNLocator(y, steps=[1, 2, 5, 10]))
        plot.yaxis.set_minor_locator(NullLocator())
        plot.yaxis.set_major_formatter(FuncFormatter(_tick))
        plot.yaxis.grid(True)


def _tick(value: float, _position: object = None) -> str:
    """A short number: 0.05, 20, 1.5k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}".replace("-", "−")
    return f"{round(value, 12):.4g}".replace("-", "−")


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """A figure of `WIDTH` by `height` units that knows nothing of the user's matplotlib settings."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE], after_reset=True):
        yield Figure(figsize=(WIDTH / 72, height / 72), dpi=72)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes placed in units: layout engines would move them with every label."""
    total = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))


def _svg(figure: Figure, height: float, label: str) -> str:
    """The figure as an `<svg>` for inlining: no size of its own, no fonts, no ids but those it uses itself."""
    raw = io.BytesIO()
    figure.savefig(raw, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(raw.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    used = {ref for item in root.iter() for value in item.attrib.values() for ref in re.findall(r"(?:url\()?#([\w-]+)", value)}
    own = hashlib.sha256(label.encode()).hexdigest()[:8]  # ids must differ between the charts of a page
    for item in root.iter():
        if item.get("id") not in used:
            item.attrib.pop("id", None)
        for name, value in item.attrib.items():
            item.set(name, f"{own}{value}" if name == "id" else _clean(name, value).replace("url(#", f"url(#{own}"))
        if _LINK in item.attrib:
            item.set(_LINK, item.attrib[_LINK].replace("#", f"#{own}"))
    root.attrib = {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": label, "class": "chart"}
    for prefix, uri in (("", _SVG[1:-1]), ("xlink", _LINK[1:].split("}")[0])):
        ElementTree.register_namespace(prefix, uri)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def _clean(name: str, value: str) -> str:
    if name == "d":
        value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", value)
        return re.sub(r"\s+", " ", value).strip()
    if name == "style":
        value = re.sub(r"font-family:[^;]*;?\s*|stroke-line(?:join|cap): (?:miter|butt);?\s*", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda colour: _VARIABLE.get(colour[0], colour[0]), value).strip()
    return value
