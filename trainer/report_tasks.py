"""What the report shows of one task: its verdict, values with intervals, learning curves, confusions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from trainer.charts import Curve, Dot, curves, whiskers
from trainer.wording import decimals, number, span, spread, value

Json = dict[str, Any]
ROLES = ("joint", "independent", "champion")
MATRIX_CLASSES = 20
"""Confusion matrices up to this size are shown whole, larger ones as a list of their worst confusions."""
_WORST = 12
_ICONS = {"better": "▲", "same": "=", "worse": "▼"}


def task(name: str, entry: Json, runs: Json, scores: Json) -> Json:
    """All that is shown of one task, from its entry in verdict.json, the histories and scores.json."""
    higher = bool(entry.get("higher_is_better", True))
    metric = entry.get("metric", "metric")
    compared = [difference(role, found) for role in ROLES[1:] if (found := entry.get(f"vs_{role}"))]
    dots = [_dot(role, found) for role in ROLES if (found := entry.get(role))]
    deltas = [_dot(role, found) for role in ROLES[1:] if (found := entry.get(f"vs_{role}"))]
    places = decimals(max((dot.high - dot.low for dot in dots if isfinite(dot.high - dot.low)), default=0))
    values = [{"role": dot.role, "text": value(dot.value, places), "interval": span(dot.low, dot.high, places)} for dot in dots]
    told = [f"{shown['role']} {shown['text']} ({shown['interval'] or 'no interval'})" for shown in values]
    told += [f"difference to {shown['role']} {shown['text']} ({shown['interval'] or 'no interval'}): {shown['word']}" for shown in compared]
    loss, judged = _curves(name, "loss", runs, ("train", "valid")), _curves(name, "metric", runs, ("valid",))
    return {
        "name": name,
        "metric": metric,
        "higher": higher,
        "rows": entry.get("rows"),
        "values": values,
        "compared": compared,
        "headline": compared[0] if compared else {"word": "not compared", "icon": "·", "kind": "none", "says": ""},
        "note": entry.get("champion_note") if entry.get("champion_status") not in (None, "none", "scored") else None,
        "whiskers": whiskers(dots, deltas, higher, f"{name}, {metric}: {'; '.join(told)}"),
        "loss": curves(loss, _spoken(name, "loss", loss)) if loss else "",
        "curve": curves(judged, _spoken(name, metric, judged)) if judged else "",
        "steps": _steps(name, runs),
        "metrics": _metrics(entry, places),
        "confusion": _confusion(scores),
        "without": _without(scores, places),
        "samples": [{"role": role, "picture": uri} for role, uri in (scores.get("samples") or {}).items()],
    }


def difference(role: str, found: Json) -> Json:
    """A `vs_...` entry of verdict.json in words. `says` is filled where the interval does not speak for itself."""
    low, high, by = number(found.get("low")), number(found.get("high")), number(found.get("difference"))
    places = decimals(high - low)
    word = str(found.get("verdict"))
    known = word in _ICONS and isfinite(by)
    says = str(found.get("says") or "")
    return {
        "role": role,
        "word": word if known else "undefined",
        "icon": _ICONS[word] if known else "?",
        "kind": word if known else "none",
        "text": value(by, places, sign=True),
        "interval": span(low, high, places, sign=True),
        "says": "" if known and says.startswith("the interval") else says,
    }


def line(history: Iterable[Json], split: str, what: str, name: str) -> list[tuple[float, float]]:
    """One quantity of one task over the steps of all phases so far: each phase counts its own, and phases may take turns."""
    points: list[tuple[float, float]] = []
    done: dict[str, float] = {}
    for record in history:
        done[str(record.get("phase"))] = number(record.get("step"))
        found = (record.get(what) or {}).get(name) if record.get("split") == split else None
        if found is not None:
            points.append((sum(done.values()), number(found)))
    return points


def _dot(role: str, found: Json) -> Dot:
    seeds = [number(seed) for seed in found.get("seeds") or []]
    return Dot(role, number(found.get("value", found.get("difference"))), number(found.get("low")), number(found.get("high")), seeds)


def _runs(name: str, runs: Json) -> dict[str, list[Json]]:
    return {"joint": runs.get("joint") or [], "independent": (runs.get("independent") or {}).get(name) or []}


def _curves(name: str, what: str, runs: Json, splits: Sequence[str]) -> list[Curve]:
    found = [
        Curve(role, [points for run in group if (points := line(run["history"], split, what, name))], dashed=split == "train")
        for split in splits
        for role, group in _runs(name, runs).items()
    ]
    return [curve for curve in found if any(isfinite(y) for points in curve.runs for _, y in points)]


def _spoken(name: str, what: str, found: Sequence[Curve]) -> str:
    """The curves in words: where each starts and ends (first seed)."""
    told = []
    for curve in found:
        points = [y for _, y in curve.runs[0]]
        told.append(f"{curve.role} {'training' if curve.dashed else 'validation'} from {value(points[0])} to {value(points[-1])}")
    return f"{name}, {what} over the steps: {'; '.join(told)}"


def _steps(name: str, runs: Json) -> list[Json]:
    """How many steps were made in each role, and how many were planned (first seed)."""
    rows = []
    for role, group in _runs(name, runs).items():
        result = group[0]["result"] if group else {}
        done, planned = sum((result.get("steps") or {}).values()), sum((result.get("steps_planned") or {}).values())
        if done:
            rows.append({"role": role, "text": f"{done:,} steps" if planned in (0, done) else f"{done:,} of {planned:,} steps"})
    return rows


def _metrics(entry: Json, places: int) -> list[Json]:
    """The primary metric and the others: a value per role."""
    primary = {role: (entry.get(role) or {}).get("value") for role in ROLES}
    table = {entry.get("metric", "metric"): primary, **(entry.get("metrics") or {})}
    return [
        {"name": name, **{role: value(found.get(role), max(places, 3)) if entry.get(role) else "" for role in ROLES}}
        for name, found in table.items()
    ]


def _without(scores: Json, places: int) -> list[Json]:
    """The primary metric with all that a task reads, and with each column missing that it can do without; empty where there is none."""
    models = {role: (scores.get("models") or {}).get(role) or [] for role in ROLES[:2]}
    columns = list(dict.fromkeys(column for runs in models.values() for run in runs for column in run.get("without") or {}))
    if not columns:
        return []
    primary = scores["primary"]
    rows = []
    for column in [None, *columns]:
        found = {
            role: [run["metrics"][primary]["value"] if column is None else run["without"][column][primary] for run in runs]
            for role, runs in models.items()
        }
        rows.append({"column": column, **{role: spread(values, max(places, 3)) for role, values in found.items()}})
    return rows


def _confusion(scores: Json) -> Json | None:
    """Counts over all seeds per model; whole if there are few classes, else the most frequent confusions."""
    classes = [str(name) for name in scores.get("classes") or []]
    k = len(classes)
    models = {}
    for role in ROLES[:2]:
        flat = [
            [n for row in run["confusion"] for n in row] for run in (scores.get("models") or {}).get(role) or [] if run.get("confusion")
        ]
        cells = [sum(column) for column in zip(*flat, strict=True)]
        if k and len(cells) == k * k:
            models[role] = cells
    if "joint" not in models:
        return None
    if k > MATRIX_CLASSES:
        return {"classes": classes, "matrices": [], "worst": _worst(models, classes)}
    return {"classes": classes, "matrices": [{"role": role, "rows": _matrix(n, classes)} for role, n in models.items()], "worst": []}


def _matrix(cells: Sequence[int], classes: Sequence[str]) -> list[Json]:
    """Rows of true classes; each cell with its share of the row."""
    rows = []
    for i, name in enumerate(classes):
        row = cells[i * len(classes) : (i + 1) * len(classes)]
        total = sum(row) or 1
        rows.append({"name": name, "cells": [{"n": n, "heat": f"{n / total:.3f}", "right": i == j} for j, n in enumerate(row)]})
    return rows


def _worst(models: Mapping[str, Sequence[int]], classes: Sequence[str]) -> list[Json]:
    """The most frequent confusions of the joint model, and how often the independent ones make them."""
    k, joint, alone = len(classes), models["joint"], models.get("independent")
    wrong = [(i, j) for i in range(k) for j in range(k) if i != j and joint[i * k + j]]
    wrong.sort(key=lambda cell: -joint[cell[0] * k + cell[1]])
    return [
        {
            "true": classes[i],
            "as": classes[j],
            "joint": joint[i * k + j],
            "share": joint[i * k + j] / sum(joint[i * k : (i + 1) * k]),
            "independent": alone[i * k + j] if alone else None,
        }
        for i, j in wrong[:_WORST]
    ]
