"""What the report shows of looks at task gradients: how tasks pull on the shared model, and which to train together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from trainer.charts import between
from trainer.grouping import advise
from trainer.report_tasks import line
from trainer.wording import cosine, many, share, value

Json = dict[str, Any]
_BESIDE = 9
"""A heat map of so many tasks leaves room for the sentences beside it."""
_FAINTEST = 0.1
"""The darkest shade is the largest mean cosine, but no less than this, so that noise looks faint."""


def pulls(runs: Json, verdict: Json, spec: Json) -> Json | None:
    """A heat map of mean cosines, curves of what looks found, and the advice on grouping; None without a look."""
    histories = [run["history"] for run in runs.get("joint") or []]
    looks = [record for history in histories for record in history if record.get("split") == "look"]
    if not looks:
        return None
    models = {name: task["model"] for name, task in (spec.get("tasks") or {}).items() if task.get("model")}
    advice = advise(looks, verdict, models)
    return {
        "looks": many(len(looks), "look") + (f" over {len(histories)} seeds" if len(histories) > 1 else ""),
        "rows": _heat(advice["tasks"], advice["pairs"]),
        "tasks": advice["tasks"],
        "wide": len(advice["tasks"]) > _BESIDE,
        "pairs": [_pair(pair) for pair in advice["pairs"]],
        "curves": list(_curves(histories)),
        "says": advice["says"],
        "budgets": list(_budgets(advice["budgets"])),
    }


def _pair(pair: Json) -> Json:
    found = {"tasks": pair["tasks"], "looks": pair["looks"], "cosine": cosine(pair["cosine"]), "conflicts": share(pair["conflicts"])}
    return found | {"spread": value(pair["spread"], 2)}


def _heat(tasks: Sequence[str], pairs: Sequence[Json]) -> list[Json]:
    """A row of cells per task; a cell of two tasks is told in words besides."""
    known: Mapping[frozenset[str], Json] = {frozenset(pair["tasks"]): pair for pair in pairs}
    darkest = max([_FAINTEST, *(abs(pair["cosine"]) for pair in pairs if pair["cosine"] is not None)])

    def cell(a: str, b: str) -> Json:
        pair = known.get(frozenset((a, b)))
        if a == b or pair is None or pair["cosine"] is None:
            why = "itself" if a == b else "on different models" if pair is None else "never seen in one step"
            return {"text": "", "kind": "self" if a == b else "none", "says": f"{a} and {b}: {why}", "shade": "0"}
        told = f"{a} and {b}: mean cosine {cosine(pair['cosine'])}, below 0 in {share(pair['conflicts'])} of {many(pair['looks'], 'look')}"
        shade = f"{abs(pair['cosine']) / darkest:.3f}"
        return {"text": cosine(pair["cosine"]), "kind": "with" if pair["cosine"] > 0 else "against", "says": told, "shade": shade}

    return [{"name": a, "cells": [cell(a, b) for b in tasks]} for a in tasks]


def _curves(histories: Sequence[Sequence[Json]]) -> Iterable[Json]:
    """What looks found over the steps."""
    for what, title, told, low in (
        ("worse", "Tasks made worse", "share of the tasks whose loss the step raises, to first order", 0.0),
        ("faithful", "Nearness to the exact update", "cosine of the update with the one that exact gradients would give", -1.0),
    ):
        # a record is put under a key of its own, where `line` looks for a task
        found = [line([record | {"found": record} for record in history], "look", "found", what) for history in histories]
        runs = [points for run in found if (points := [(x, y) for x, y in run if isfinite(y)])]
        heights = [y for run in runs for _, y in run]
        if not heights:
            continue
        mean = value(sum(heights) / len(heights), 3)
        floor = low if min(heights) < 0 else 0.0
        drawing = between(runs, floor, 1.0, f"{title}: {told}; mean {mean}, from {value(min(heights), 3)} to {value(max(heights), 3)}")
        yield {"title": title, "told": told, "mean": mean, "chart": drawing}


def _budgets(budgets: Sequence[Json]) -> Iterable[Json]:
    """The partitions, with the budgets that come to the same in one row."""
    for i, budget in enumerate(budgets):
        if i and budget["groups"] == budgets[i - 1]["groups"]:
            continue
        same = [b["trunks"] for b in budgets[i:] if b["groups"] == budget["groups"]]
        text = str(same[0]) if len(same) == 1 else f"{same[0]} or more"
        yield {"trunks": text, "groups": budget["groups"], "score": value(budget["score"], 3, sign=True)}
