"""Inputs of the report in the documented formats (docs/architecture.md), of any size and with any of their oddities."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

NAMES = ["rating", "recommended", "department", "price", "style", "season", "fit", "length",
         "returned", "helpful", "age", "colour", "fabric", "brand", "outlet", "loyalty"]  # fmt: skip
CLASSES = {"rating": 5, "recommended": 2, "department": 6, "style": 34, "season": 4, "fit": 3, "length": 3, "returned": 2}


def report_inputs(
    tasks: int = 4, seeds: int = 1, independent: bool = True, champion: bool = False, nan: bool = False,
    passed: bool = True, valid: bool = True, names: list[str] | None = None, weighted: bool = True, points: int = 60, looks: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Keyword arguments for `trainer.report.render`."""
    rng = random.Random(7)
    names = (names or NAMES)[:tasks]
    kinds = {name: "number" if NAMES[i % 16] in ("price", "age", "helpful", "loyalty") else "category" for i, name in enumerate(names)}
    classes = {name: [f"{name} {k}" if k else f"{name}" for k in range(CLASSES.get(NAMES[i % 16], 7))] for i, name in enumerate(names)}
    verdict_tasks = {name: _verdict(name, kinds[name], i, seeds, independent, champion, nan, rng) for i, name in enumerate(names)}
    spec = _spec(names, kinds, seeds, independent)
    joint = [_run(names, "joint", None, seed, spec, valid, weighted, points) for seed in range(seeds)]
    alone = {name: [_run([name], "independent", name, seed, spec, valid, False, points) for seed in range(seeds)] for name in names}
    for run in joint:
        run["history"] += _looks(names, run["result"]["seed"], looks, points)
    gate = {"passed": passed, "checks": [
        {"name": "worst_drop", "task": names[-1], "passed": passed, "found": -0.031, "wanted": ">= -0.05" if passed else ">= -0.01",
         "says": f"{names[-1]} is worse than independent training by 0.031"},
        {"name": "beat_champion", "task": names[0], "passed": True, "found": 0.012, "wanted": "not worse", "says": f"{names[0]} is better"},
    ]}  # fmt: skip
    judged = [entry["vs_independent"]["verdict"] for entry in verdict_tasks.values() if entry["vs_independent"]]
    cost = {"joint": {"seconds": 812.4 * seeds, "parameters": 1_283_411, "flops_per_row": 41_200_000}}
    if independent:
        cost["independent"] = {"seconds": 2011.0 * seeds, "parameters": 1_270_000 * tasks, "flops_per_row": 40_900_000 * tasks}
    verdict = {
        "name": spec["name"], "confidence": 0.95, "seeds": seeds, "tasks": verdict_tasks, "helped": judged.count("better"),
        "hurt": judged.count("worse"), "cost": cost, "champion": "2026-01-04-3f2a" if champion else None, "gate": gate,
    }  # fmt: skip
    steps = ["check", "prepare reviews", "train joint", *(f"train independent {name}" for name in names if independent),
             *(f"evaluate {name}" for name in names), "compare", "publish"]  # fmt: skip
    return {
        "spec": spec, "verdict": verdict, "runs": {"joint": joint, "independent": alone if independent else {}},
        "data": {"reviews": _data(names, kinds, classes)},
        "scores": {name: _scores(name, kinds[name], classes[name], verdict_tasks[name], seeds, independent, rng) for name in names},
        "timings": [{"step": step, "seconds": round(0.4 + 90 * rng.random() ** 3 + 600 * (step == "train joint"), 2),
                     "reused": step.startswith("train independent") and rng.random() < 0.5} for step in steps],
        "outcome": {"published": "s3://models/reviews/models/reviews/versions/2026-02-11-9c1e", "promoted": True}
        if passed else {"published": None, "reasons": [gate["checks"][0]["says"]]},
    }  # fmt: skip


def _verdict(name: str, kind: str, i: int, seeds: int, independent: bool, champion: bool, nan: bool, rng: random.Random) -> dict[str, Any]:
    higher = kind == "category"
    base, half = (0.62 + 0.3 * rng.random(), 0.012) if higher else (12.4 + rng.random(), 0.4)
    gain = [3.0, 0.2, -2.6, -2.2][i % 4] * half

    def value(at: float) -> dict[str, Any]:
        spread = [at + half * 0.5 * math.sin(5 * seed + i) for seed in range(seeds)]
        return {"value": at, "low": at - half, "high": at + half, "seeds": spread}

    def difference(by: float) -> dict[str, Any]:
        low, high = by - half * 1.2, by + half * 1.2
        word = "same" if low <= 0 <= high else "better" if (low > 0) == higher else "worse"
        return {"difference": by, "low": low, "high": high, "verdict": word, "says": f"the interval says {word}"}

    broken = nan and i == 0
    nothing = {"value": None, "low": None, "high": None, "seeds": [None] * seeds}
    lost = {"difference": None, "low": None, "high": None, "verdict": "undefined", "says": "joint: all 3523 test rows have the same target"}
    other = "f1_macro" if higher else "r2"
    return {
        "metric": "accuracy" if higher else "mae", "higher_is_better": higher, "target": kind, "rows": 3523,
        "joint": nothing if broken else value(base + gain), "independent": value(base) if independent else None,
        "champion": value(base - half / 3) if champion else None,
        "vs_independent": (lost if broken else difference(gain)) if independent else None,
        "vs_champion": (lost if broken else difference(gain + half / 3)) if champion else None,
        "metrics": {other: {"joint": math.nan if broken else 0.71, "independent": 0.70 if independent else None, "champion": None}},
    }  # fmt: skip


def _run(
    tasks: list[str], role: str, task: str | None, seed: int, spec: dict[str, Any], valid: bool, weighted: bool, points: int
) -> dict[str, Any]:
    rng = random.Random(f"{role}{task}{seed}")
    level = 0.95 + 0.1 * rng.random()
    history: list[dict[str, Any]] = []
    for k in range(1, points + 1):
        at = {"phase": "joint", "step": 50 * k, "samples": 3200 * k, "seconds": 13.0 * k}
        fall = {name: (1 + 0.3 * i) * math.exp(-3 * k / points) + 0.3 + 0.05 * (role == "independent") for i, name in enumerate(tasks)}
        weight = {name: 1 + (0.8 * math.sin(i + 3 * k / points) if weighted else 0) for i, name in enumerate(tasks)}
        history.append(
            {
                "split": "train",
                **at,
                "loss": {name: v * (level + 0.08 * rng.random()) for name, v in fall.items()},
                "weight": weight,
                "lr": 1e-3,
            }
        )
        if valid and k % 3 == 0:
            rise = 0.25 * (k / points) ** 3 * (role == "independent")
            history.append({"split": "valid", **at,
                            "loss": {name: v * level + 0.06 + rise + 0.03 * rng.random() for name, v in fall.items()},
                            "metric": {name: 0.9 - v * level / 3 + 0.01 * rng.random() for name, v in fall.items()}})  # fmt: skip
    result = {
        "key": f"{role}-{seed}", "name": spec["name"], "role": role, "task": task, "seed": seed, "spec": spec, "tasks": tasks, "ranks": 2,
        "device": "cpu", "parameters": 1_283_411, "flops_per_row": 41_200_000, "steps": {"joint": 50 * points},
        "steps_planned": {"joint": 60 * points}, "task_steps": dict.fromkeys(tasks, 50 * points), "samples": 3200 * points,
        "seconds": {"start": 6.1, "train": 741.0, "validate": 52.3, "checkpoint": 3.2, "total": 812.4},
    }  # fmt: skip
    return {"result": result, "history": history}


def _looks(tasks: list[str], seed: int, looks: int, points: int) -> list[dict[str, Any]]:
    """Two families of tasks that pull against each other, the even and the odd ones."""
    rng = random.Random(f"look{seed}")
    found = []
    for k in range(looks):
        cosine = {a: {a: 1.0} for a in tasks}
        for (i, a), (j, b) in itertools.combinations(enumerate(tasks), 2):
            cosine[a][b] = cosine[b][a] = (0.35 if (j - i) % 2 == 0 else -0.12) * 0.9**i + 0.15 * (rng.random() - 0.5)
        at = {"phase": "joint", "step": 1 + 50 * points * k // looks}
        found.append({"split": "look", **at, "cosine": cosine, "faithful": 1 - 0.2 * rng.random(), "worse": rng.randrange(3) / len(tasks)})
    return found


def _scores(
    name: str, kind: str, classes: list[str], verdict: dict[str, Any], seeds: int, independent: bool, rng: random.Random
) -> dict[str, Any]:
    def entry(role: str, seed: int) -> dict[str, Any]:
        sure = 8 if role == "joint" else 6
        confusion = [[rng.randrange(60, 120) * sure if a == b else rng.randrange(0, 90 // (1 + abs(a - b))) for b in range(len(classes))]
                     for a in range(len(classes))]  # fmt: skip
        at = verdict[role] or verdict["joint"]
        metrics = {verdict["metric"]: {"value": at["value"], "low": at["low"], "high": at["high"]},
                   **{other: {"value": 0.7, "low": 0.69, "high": 0.71} for other in verdict["metrics"]}}  # fmt: skip
        return {"seed": seed, "train_key": f"{role}-{seed}", "confusion": confusion if kind == "category" else None, "metrics": metrics,
                "predictions": f"predictions-{role}-{seed}.arrow"}  # fmt: skip

    return {
        "task": name, "target": kind, "classes": classes if kind == "category" else [], "rows": 3523, "primary": verdict["metric"],
        "higher_is_better": {verdict["metric"]: verdict["higher_is_better"]},
        "models": {"joint": [entry("joint", seed) for seed in range(seeds)],
                   "independent": [entry("independent", seed) for seed in range(seeds)] if independent else [], "champion": []},
    }  # fmt: skip


def _spec(names: list[str], kinds: dict[str, str], seeds: int, independent: bool) -> dict[str, Any]:
    columns = {"text": {"kind": "text", "max_tokens": 128}, **{name: {"kind": kind} for name, kind in kinds.items()}}
    return {
        "name": "reviews", "seed": 0, "seeds": seeds,
        "data": {"reviews": {"kind": "parquet", "uri": "s3://lake/reviews/", "key": "review_id", "columns": columns}},
        "models": {"encoder": {"kind": "text_transformer", "width": 128, "layers": 4}},
        "tasks": {name: {"data": "reviews", "model": "encoder", "input": "text", "target": name} for name in names},
        "phases": {"joint": {"tasks": names, "epochs": 5, "balancer": {"kind": "uncertainty"}, "mixer": {"kind": "all"}}},
        "train": {"optimizer": {"kind": "adamw", "lr": 3e-4}, "batch": 64, "zero": {"stage": 2}, "precision": "fp32", "clip": 1.0},
        "compare": {"independent": independent, "confidence": 0.95, "gate": {"worst_drop": 0.05}},
    }  # fmt: skip


def _data(names: list[str], kinds: dict[str, str], classes: dict[str, list[str]]) -> dict[str, Any]:
    rows = {"train": 16440, "valid": 3523, "test": 3523}
    tokens = {"min": 2, "q25": 41, "q50": 66, "q75": 99, "max": 128}
    columns: dict[str, Any] = {"text": {"kind": "text", "splits": {
        split: {"missing": n // 29, "missing_share": (n // 29) / n, "tokens": tokens, "full": n // 11} for split, n in rows.items()
    }}}  # fmt: skip
    fitted: dict[str, Any] = {"text": {"kind": "text", "shape": [128], "dtype": "int32", "vocab_size": 8000, "pad": 0}}
    for name in names:
        splits: dict[str, Any] = {}
        for split, n in rows.items():
            if kinds[name] == "number":
                splits[split] = {"missing": 0, "missing_share": 0.0, "min": 3.0, "max": 890.5, "mean": 71.25, "std": 30.5}
                continue
            wide = [2 ** -(0.6 * k) * (1 + 0.1 * (split == "test") * (k % 2)) for k in range(len(classes[name]))]
            balance = {label: int(n * part / sum(wide)) for label, part in zip(classes[name], wide, strict=True)}
            odd = 2 * (split == "test" and len(balance) > 10)
            splits[split] = {
                "missing": odd,
                "missing_share": odd / n,
                "balance": balance,
                "unseen": odd,
                "unseen_labels": [f"{name} new"] * odd,
            }
        columns[name] = {"kind": kinds[name], "splits": splits}
        fitted[name] = {
            "kind": kinds[name],
            "shape": [],
            **({"classes": classes[name]} if kinds[name] == "category" else {"mean": 71.25, "std": 30.5}),
        }
    none: dict[str, Any] = {"rows": 0, "examples": []}
    duplicates = {
        "columns": ["text"], "groups": 9, "rows": 12, "examples": [[[17, "train"], [4021, "train"]]],
        "within": {"train": 8, "valid": 0, "test": 1},
        "across": {"train-valid": none, "train-test": {"rows": 3, "examples": [[[17, "train"], [18204, "test"]]]}, "valid-test": none},
        "conflicts": {"groups": 2, "rows": 4, "examples": [[[88, "train"], [9120, "train"]]]},
    }  # fmt: skip
    return {
        "manifest": {"stage": "data", "key": "k", "digest": "d" * 64, "rows": rows, "shards": {}, "files": {}},
        "report": {"rows": rows, "columns": columns, "duplicates": duplicates, "modalities": None},
        "fitted": fitted,
    }
