"""How the results of `benchmarks.results_balancers` are summed up: improvements with intervals over seeds, tables, a picture.

Shape suffixes: S seeds, T tasks.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common import table

CONFIDENCE = 0.95
BASELINES = ("independent", "equal", "static")
NAMES = {"independent": "independent training", "equal": "`equal`, tuned", "static": "`static`, tuned"}

Chosen = tuple[str, dict[str, float]]
"""What was chosen by the validation rows, and the score of each task on the test rows."""


@dataclass(frozen=True)
class Judged:
    """All methods of one setting."""

    name: str
    title: str
    tasks: Sequence[str]
    seeds: Sequence[Mapping[str, Chosen]]
    """By method, for each seed."""

    def scores(self, method: str) -> np.ndarray:
        """`[S, T]`."""
        return np.array([[seed[method][1][task] for task in self.tasks] for seed in self.seeds])

    @property
    def methods(self) -> list[str]:
        """The best first, by the mean improvement over independent training."""
        names = [name for name in self.seeds[0] if name != "independent"]
        return sorted(names, key=lambda name: -interval(self.improvement(name, "independent"))[0])

    def improvement(self, method: str, baseline: str) -> np.ndarray:
        """Mean over tasks of the relative improvement of the score, per cent, `[S]`: both had the same rows and initial weights.

        Relative to the better of both, so it is between -100 and 100 and the same, but for its sign, the other way round.
        """
        ours_ST, theirs_ST = self.scores(method), self.scores(baseline)
        return 100 * ((ours_ST - theirs_ST) / np.maximum(np.maximum(ours_ST, theirs_ST), 1e-9)).mean(1)


def interval(values_S: np.ndarray) -> tuple[float, float, float]:
    """The mean, and Student's interval for it over seeds."""
    from scipy.special import stdtrit

    mean, size = float(np.mean(values_S)), len(values_S)
    half = float(stdtrit(size - 1, (1 + CONFIDENCE) / 2) * np.std(values_S, ddof=1) / size**0.5) if size > 1 else float("nan")
    return mean, mean - half, mean + half


def page(judged: Judged) -> str:
    """A table of one setting, and how many methods beat tuned scalarisation."""
    head = ["method", *judged.tasks, *(f"over {NAMES[baseline]}, %" for baseline in BASELINES), "learning rate chosen most often"]
    lines = [_line(judged, method) for method in ("independent", *judged.methods)]
    return "\n\n".join(
        [f"### {judged.title}", f"{len(judged.seeds)} seeds; mean score of each task on the test rows.", table(head, lines), *_sums(judged)]
    )


def _line(judged: Judged, method: str) -> list[str]:
    shown = [f"{mean:.3f}" for mean in judged.scores(method).mean(0)]
    cells = []
    for baseline in BASELINES:
        if method == baseline or baseline not in judged.seeds[0]:
            cells.append("")
            continue
        mean, low, high = interval(judged.improvement(method, baseline))
        cells.append(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})")
    picks = [seed[method][0] for seed in judged.seeds]
    often = max(dict.fromkeys(picks), key=picks.count) if method not in ("independent", "static") else "each seed its own"
    return [NAMES.get(method, f"`{method}`"), *shown, *cells, often]


def _sums(judged: Judged) -> list[str]:
    said = []
    for baseline in BASELINES:
        others = [m for m in judged.methods if m not in BASELINES]
        spans = [interval(judged.improvement(m, baseline)) for m in others]
        better = [m for m, (_, low, _) in zip(others, spans, strict=True) if low > 0]
        worse = [m for m, (_, _, high) in zip(others, spans, strict=True) if high < 0]
        listed = lambda names: f"{len(names)}" + (f" ({', '.join(f'`{n}`' for n in names)})" if names else "")  # noqa: E731
        said.append(f"Better than {NAMES[baseline]}, of {len(others)} methods: {listed(better)}. Worse: {listed(worse)}.")
    return ["\n".join(f"- {line}" for line in said)]


_INK = {"#010101": "ink", "#020202": "soft", "#030303": "better", "#040404": "worse", "#050505": "same"}
_STYLE = """<style>
  svg { --ink: #1b1f24; --soft: #c9d1d9; --better: #1a7f37; --worse: #cf222e; --same: #6e7781 }
  text { font-family: system-ui, 'DejaVu Sans', sans-serif !important }
  @media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --soft: #3d444d; --better: #3fb950; --worse: #f85149; --same: #9198a1 } }
</style>"""


Row = tuple[str, float, float, float]
"""A method, its mean improvement over tuned static weights, per cent, and the interval of it."""


def panels(text: str) -> dict[str, list[Row]]:
    """What the tables of a page say of each setting, so that settings may be measured one at a time."""
    found: dict[str, list[Row]] = {}
    for name, body in re.findall(r"<!-- results_balancers (\w+) -->(.*?)<!-- end", text, re.S):
        head, _, *lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
        column = head.index(f"over {NAMES['static']}, %")
        names = {shown.replace("`", ""): short for short, shown in NAMES.items()}
        cells = [(line[0].replace("`", ""), line[column]) for line in lines]
        found[name] = [(names.get(method, method), *map(float, re.findall(r"[-+]\d+\.\d+", cell))) for method, cell in cells if cell]  # type: ignore[misc]
    return found


def picture(of: Mapping[str, Sequence[Row]]) -> str:
    """SVG: the improvement of each method over tuned scalarisation with its interval, a panel per setting, for light and dark pages."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, soft, better, worse, same = _INK
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "cotrain", "font.size": 10, "text.color": ink, "xtick.color": ink, "ytick.color": ink,
        "axes.edgecolor": soft, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "xtick.major.size": 0, "ytick.major.size": 0, "grid.color": soft, "axes.axisbelow": True,
    }  # fmt: skip
    most = max(len(rows) for rows in of.values())
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.6 * len(of), 0.9 + 0.24 * most), layout="constrained")
        figure.patch.set_alpha(0)
        canvas = FigureCanvasSVG(figure)
        for axes, (title, rows) in zip(figure.subplots(1, len(of), squeeze=False)[0], of.items(), strict=True):
            ordered = sorted(rows, key=lambda row: row[1])
            for row, (_, mean, low, high) in enumerate(ordered):
                colour = better if low > 0 else worse if high < 0 else same
                axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
                axes.plot([mean], [row], "o", color=colour, markersize=5)
            axes.axvline(0, color=ink, linewidth=1)
            axes.set_yticks(range(len(ordered)), [name for name, *_ in ordered])
            axes.set_title(title, color=ink, fontsize=11)
            axes.grid(axis="x", linewidth=0.8)
            axes.patch.set_alpha(0)
        figure.supxlabel("mean improvement over tuned static weights, %", fontsize=10, color=ink)
        drawn = io.StringIO()
        canvas.print_svg(drawn, metadata={"Date": None, "Creator": None})
    svg = re.sub("|".join(_INK), lambda found: f"var(--{_INK[found[0]]})", drawn.getvalue())
    svg = svg[svg.index("<svg") :]
    return re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}<title>Improvement over tuned static weights</title>{_STYLE}", svg, count=1)
