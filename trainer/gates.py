"""What must hold before anything is published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.spec import JointSpec

Json = dict[str, Any]


def gate(spec: JointSpec, tasks: Mapping[str, Json]) -> Json:
    """Every condition of `compare.gate` for every task it names. What can't be judged does not pass."""
    wanted = spec.compare.gate
    checks = [_worst_drop(task, entry, wanted.worst_drop) for task, entry in tasks.items()] if wanted.worst_drop is not None else []
    checks += [_beat_champion(task, tasks[task]) for task in wanted.beat_champion]
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def _worst_drop(task: str, entry: Json, most: float) -> Json:
    check = {"name": "worst_drop", "task": task, "wanted": f">= {-most:g}" if most else ">= 0"}
    found = entry["vs_independent"]
    if found is None:
        says = f"{task} was not trained alone, so no drop can be measured: set compare.independent to true"
        return {**check, "passed": False, "found": None, "says": says}
    if found["difference"] is None:
        return {**check, "passed": False, "found": None, "says": f"{entry['metric']} of {task} is not defined ({found['says']})"}
    gain = _gain(entry, found)
    passed = gain >= -most - 1e-12  # 0.95 - 0.9 is 0.04999...
    side = f"{abs(gain):.4g} {'better' if gain > 0 else 'worse'} in {entry['metric']} than" if gain else f"as good in {entry['metric']} as"
    return {**check, "passed": passed, "found": gain, "says": f"{task} is {side} independent training; at most {most:g} worse is allowed"}


def _beat_champion(task: str, entry: Json) -> Json:
    check = {"name": "beat_champion", "task": task, "wanted": "not worse than the champion"}
    found, note = entry["vs_champion"], entry["champion_note"]
    if found is None:
        # a champion that is there and can't be asked is not beaten by that
        passed = entry["champion_status"] in ("none", "unknown_task")
        says = f"{task} has no champion to beat: {note}" if passed else f"{task} can't be compared with the champion: {note}"
        return {**check, "passed": passed, "found": None, "says": says}
    if found["difference"] is None:
        return {**check, "passed": False, "found": None, "says": f"{entry['metric']} of {task} is not defined ({found['says']})"}
    gain = _gain(entry, found)
    word = {"better": "better than", "worse": "worse than", "same": "not clearly different from"}[found["verdict"]]
    says = f"{task} is {word} the champion in {entry['metric']} ({found['difference']:+.4g}, {found['low']:+.4g} to {found['high']:+.4g})"
    return {**check, "passed": found["verdict"] != "worse", "found": gain, "says": says + (f"; {note}" if note else "")}


def _gain(entry: Json, found: Json) -> float:
    """A difference turned so that more is better."""
    return found["difference"] if entry["higher_is_better"] else -found["difference"]
