"""Whether joint training paid off: per task against training alone and against the promoted model, and whether the gates let it pass.

Shape suffixes: R resamples, S seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.bootstrap import interval, on_all_rows, over_seeds, resample
from trainer.errors import CotrainError
from trainer.evaluate import finite, metrics_of, read_predictions, why_undefined
from trainer.gates import gate
from trainer.results import Result, key_of, keyed, read_manifest
from trainer.spec import JointSpec

Json = dict[str, Any]
FEW_ROWS = 20
"""With fewer test rows no resampling can tell models apart: three rows that agree give an interval of width 0."""


def compare(spec: JointSpec, scores: Sequence[Path], joint: Sequence[Json], independent: Mapping[str, Sequence[Json]], root: str) -> Result:
    """Judge joint training on every task. Found again if nothing it depends on has changed.

    Differences are paired: both models are judged on the same resamples of the test rows. With several
    seeds the seeds are drawn anew too, so the interval holds training noise; with one it can't.

    Args:
        scores: folders made by `evaluate_task`, one for each task of `spec`.
        joint: `result.json` of the joint runs, one a seed.
        independent: the same of the independent runs, by task; empty where there are none.

    Returns:
        `verdict.json`, see docs/architecture.md.

    Raises:
        CotrainError: if a task has no scores.
    """
    folders = {json.loads((folder / "scores.json").read_text())["task"]: folder for folder in scores}
    missing = [task for task in spec.judged_tasks if task not in folders]
    if missing:
        raise CotrainError(f"no scores of {', '.join(missing)}: every task is judged, or none is")
    key = key_of(
        "compare", spec.name, spec.compare.model_dump(mode="json"),
        [[task, read_manifest(folders[task])["key"]] for task in spec.judged_tasks],
        [run["key"] for run in joint], {task: [run["key"] for run in runs] for task, runs in independent.items()},
    )  # fmt: skip

    def make(folder: Path) -> Json:
        tasks = {task: judge(spec, task, folders[task]) for task in spec.judged_tasks}
        found = [entry["vs_independent"]["verdict"] for entry in tasks.values() if entry["vs_independent"]]
        versions = {entry.pop("champion_version") for entry in tasks.values()} - {None}
        checks = gate(spec, tasks)
        verdict = {
            "name": spec.name, "confidence": spec.compare.confidence, "seeds": len(joint), "tasks": tasks,
            "helped": found.count("better"), "hurt": found.count("worse"), "cost": cost(joint, independent),
            "champion": versions.pop() if versions else None, "gate": checks,
        }  # fmt: skip
        (folder / "verdict.json").write_text(json.dumps(verdict, indent=1, allow_nan=False))
        return {"passed": checks["passed"]}

    return keyed(root, "compare", key, make)


def judge(spec: JointSpec, task: str, folder: Path) -> Json:
    """The verdict of one task, from the predictions in the folder of its scores."""
    scores = json.loads((folder / "scores.json").read_text())
    primary, higher = scores["primary"], scores["higher_is_better"][scores["primary"]]
    metric, classes, confidence = metrics_of(spec, task)[primary], len(scores["classes"]), spec.compare.confidence

    read = {role: [read_predictions(folder / entry["predictions"]) for entry in entries] for role, entries in scores["models"].items()}
    models = [score for pairs in read.values() for score, _ in pairs]
    target = next(target for pairs in read.values() for _, target in pairs)
    points = on_all_rows({primary: metric}, models, target, classes)
    drawn, whole = iter(resample({primary: metric}, models, target, classes, spec.compare.resamples, points)), iter(points)

    point_S = {role: np.array([next(whole)[primary] for _ in pairs]) for role, pairs in read.items() if pairs}
    values_SR = {role: np.stack([next(drawn)[primary] for _ in pairs]) for role, pairs in read.items() if pairs}
    why = {
        role: next(why_undefined(score, target) for (score, _), value in zip(read[role], points, strict=True) if not math.isfinite(value))
        for role, points in point_S.items()
        if not np.isfinite(points).all()
    }

    def estimate(role: str) -> Json | None:
        if role not in point_S:
            return None
        low, high = interval(over_seeds([(point_S[role], values_SR[role])], confidence)[0], confidence)
        value = finite(point_S[role].mean())
        bounds = {"low": finite(low), "high": finite(high)} if value is not None else {"low": None, "high": None}
        return {"value": value, **bounds, "seeds": [finite(point) for point in point_S[role]]}

    nothing = {"difference": None, "low": None, "high": None, "verdict": "undefined"}

    def against(other: str) -> Json | None:
        if other not in point_S:
            return None
        undefined = [f"{role}: {why[role]}" for role in ("joint", other) if role in why]
        if undefined:
            return {**nothing, "says": "; ".join(undefined)}
        ours_R, theirs_R = over_seeds([(point_S[role], values_SR[role]) for role in ("joint", other)], confidence)
        low, high = interval(ours_R - theirs_R, confidence)
        if not math.isfinite(low):
            return {**nothing, "says": f"{primary} is not defined on any resample of the {len(target)} test rows"}
        difference = float(point_S["joint"].mean() - point_S[other].mean())
        return {"difference": difference, "low": low, "high": high, **_word(low, high, higher, len(target))}

    others = [name for name in scores["higher_is_better"] if name != primary]
    return {
        "metric": primary, "higher_is_better": higher, "target": scores["target"], "rows": scores["rows"],
        **{role: estimate(role) for role in ("joint", "independent", "champion")},
        "vs_independent": against("independent"), "vs_champion": against("champion"),
        **{name: scores[name] for name in ("champion_version", "champion_status", "champion_note")},
        "metrics": {name: _point(scores, name) for name in others},
    }  # fmt: skip


def _word(low: float, high: float, higher: bool, rows: int) -> Json:
    if rows < FEW_ROWS:
        return {"verdict": "same", "says": f"{rows} test rows are too few to tell: at least {FEW_ROWS} are needed"}
    if low > 0 or high < 0:
        word = "better" if (low > 0) == higher else "worse"
        return {"verdict": word, "says": f"the interval excludes 0: joint training is {word}"}
    return {"verdict": "same", "says": "the interval includes 0: no clear difference"}


def _point(scores: Json, metric: str) -> Json:
    """A metric of each role, the mean over its seeds; None where there is no model or a seed's is not defined."""
    found: Json = {"higher_is_better": scores["higher_is_better"][metric]}
    for role, entries in scores["models"].items():
        values = [entry["metrics"][metric]["value"] for entry in entries]
        found[role] = sum(values) / len(values) if values and None not in values else None
    return found


def cost(joint: Sequence[Json], independent: Mapping[str, Sequence[Json]]) -> dict[str, Json | None]:
    """What one joint model costs (mean over seeds), and what a model per task costs in all.

    `seconds` are those of training proper; `wall_seconds` hold start, validation and checkpoints too;
    `process_seconds` are training seconds times ranks.
    """

    def mean(runs: Sequence[Json]) -> dict[str, float | None]:
        columns = {
            "seconds": [run["seconds"]["train"] for run in runs],
            "wall_seconds": [run["seconds"]["total"] for run in runs],
            "process_seconds": [run["seconds"]["train"] * run["ranks"] for run in runs],
            "parameters": [run.get("parameters") for run in runs],
            "flops_per_row": [run.get("flops_per_row") for run in runs],
        }
        return {name: None if not values or None in values else sum(values) / len(values) for name, values in columns.items()}

    def whole(found: Json) -> Json:
        counts = ("parameters", "flops_per_row")
        return {name: round(value) if name in counts and value is not None else value for name, value in found.items()}

    alone = [mean(runs) for runs in independent.values() if runs]
    if not alone:
        return {"joint": whole(mean(joint)), "independent": None}
    total = {name: None if any(one[name] is None for one in alone) else sum(one[name] or 0 for one in alone) for name in alone[0]}
    return {"joint": whole(mean(joint)), "independent": {**whole(total), "models": len(alone)}}


def sentence(verdict: Json) -> list[str]:
    """The verdict in plain lines for a terminal: one a task, then the count, the cost and the gates."""
    lines = [line for task, entry in verdict["tasks"].items() for line in _task_lines(task, entry)]
    total = len(verdict["tasks"])
    if any(entry["vs_independent"] for entry in verdict["tasks"].values()):
        lines.append(f"joint training helped {verdict['helped']} and hurt {verdict['hurt']} of {total} task{'s' if total != 1 else ''}")
        if verdict["seeds"] == 1:
            lines.append("intervals hold the luck of the test rows only: one seed says nothing about training noise (see `seeds`)")
    lines += _cost_lines(verdict["cost"])
    for check in verdict["gate"]["checks"]:
        lines.append(f"gate {check['name']}, {'passed' if check['passed'] else 'FAILED'}: {check['says']}")
    return lines


def _task_lines(task: str, entry: Json) -> list[str]:
    lines = []
    for role, name in (("independent", "alone"), ("champion", "champion")):
        found = entry[f"vs_{role}"]
        if found is None:
            continue
        if found["difference"] is None:
            lines.append(f"{task}: {entry['metric']} is not defined ({found['says']})")
            continue
        spread = f"{found['difference']:+.4g} ({found['low']:+.4g} to {found['high']:+.4g})"
        values = f"{entry['joint']['value']:.4g} joint, {entry[role]['value']:.4g} {name}"
        lines.append(f"{task}: {entry['metric']} {values}: {spread}, {found['verdict']}")
    if not lines:
        value = entry["joint"]["value"]
        lines.append(f"{task}: {entry['metric']} {'is not defined' if value is None else f'{value:.4g}'}, compared with nothing")
    if entry["champion_note"] and entry["champion_status"] != "none":
        lines.append(f"{task}: {entry['champion_note']}")
    return lines


def _cost_lines(cost: Mapping[str, Json | None]) -> list[str]:
    joint, alone = cost["joint"], cost["independent"]
    if joint is None or alone is None:
        return []
    seconds = f"training took {joint['seconds']:.1f} s jointly, {alone['seconds']:.1f} s alone in all"
    if joint["parameters"] is None or alone["parameters"] is None:
        return [seconds]
    return [f"{seconds}; parameters {joint['parameters']:,} in one model, {alone['parameters']:,} in one per task"]
