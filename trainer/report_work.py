"""What the report shows of the work itself: cost, task weights, where the time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from trainer.charts import highlight
from trainer.report_tasks import line
from trainer.wording import count, number, seconds, value

Json = dict[str, Any]
_COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("seconds", "training time", seconds),
    ("parameters", "parameters", count),
    ("flops_per_row", "FLOPs per row", count),
)


def cost(verdict: Json) -> list[Json]:
    """What one model costs against one per task; bars are shares of the dearer side."""
    sides = {role: found for role, found in (verdict.get("cost") or {}).items() if found}
    rows = []
    for key, label, text in _COSTS:
        pair = {role: x for role in ("joint", "independent") if isfinite(x := number(sides.get(role, {}).get(key)))}
        top = max(pair.values(), default=0) or 1
        ratio = f"{pair['joint'] / pair['independent']:.2f}×" if len(pair) == 2 and pair["independent"] > 0 else None
        bars = [{"role": role, "text": text(x), "width": f"{100 * x / top:.1f}"} for role, x in pair.items()]
        if bars:
            rows.append({"label": label, "bars": bars, "ratio": ratio})
    return rows


def weights(runs: Json) -> list[Json]:
    """A chart per task of its weight in the joint loss (first seed); none if all weights stay as they are."""
    history = runs["joint"][0]["history"] if runs.get("joint") else []
    names = dict.fromkeys(name for record in history if record.get("split") == "train" for name in record.get("weight") or {})
    found = {name: [(x, y) for x, y in line(history, "train", "weight", name) if isfinite(y)] for name in names}
    lines = {name: points for name, points in found.items() if points}
    heights = {name: [y for _, y in points] for name, points in lines.items()}
    if not any(max(ys) - min(ys) > 1e-3 * max(map(abs, ys)) for ys in heights.values()):
        return []
    top = 1.08 * max(map(max, heights.values()))
    return [
        {"name": name, "chart": highlight(lines, name, top, f"weight of {name} from {value(ys[0])} to {value(ys[-1])}")}
        for name, ys in heights.items()
    ]


def timings(steps: Sequence[Json]) -> list[Json]:
    """The steps of the run; bars are shares of the longest."""
    top = max((number(entry.get("seconds")) for entry in steps), default=0) or 1
    return [
        {
            "step": entry["step"],
            "text": seconds(entry.get("seconds")),
            "reused": bool(entry.get("reused")),
            "width": f"{100 * number(entry.get('seconds')) / top:.1f}",
        }
        for entry in steps
    ]


def stages(runs: Json) -> list[Json]:
    """Where the time of joint training went, as a mean over its seeds."""
    found = [run["result"].get("seconds") or {} for run in runs.get("joint") or []]
    names = [name for name in dict.fromkeys(key for entry in found for key in entry) if name != "total"]
    means = {name: sum(number(entry.get(name, 0)) for entry in found) / len(found) for name in names}
    total = sum(means.values()) or 1
    return [{"name": name, "text": seconds(x), "share": x / total, "width": f"{100 * x / total:.2f}"} for name, x in means.items() if x > 0]
