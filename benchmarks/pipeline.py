"""Where the time of `cotrain run examples/01-digits.yaml` goes, and what the time to the first step consists of.

Every moment of the command counts for one thing only, the first of these that is going on in any step: preparing,
training or evaluating; a training that is starting or ending; another step; nothing, which is KFP between steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import apart, arguments, machine, publish, spread, table

EXAMPLE = Path(__file__).parents[1] / "examples" / "01-digits.yaml"
Event = dict[str, Any]
Seconds = dict[str, float]
WORK = ("preparing", "training", "evaluating")


def run(overrides: list[str]) -> tuple[float, float, list[Event]]:
    """When the command began and ended, and the events of its steps."""
    with apart() as folder:
        command = [str(Path(sys.executable).with_name("cotrain")), "run", str(EXAMPLE), "--root", "root", *overrides]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COTRAIN_")}
        began = time.time()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        ended = time.time()
        if done.returncode not in (0, 3):  # 3: a gate said no
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        (events,) = folder.glob("runs/logs/*/*/events.jsonl")
        return began, ended, [json.loads(line) for line in events.read_text().splitlines()]


def intervals(events: list[Event]) -> list[tuple[float, float, str]]:
    """Start, end and name of whatever went on."""
    found: list[tuple[float, float, str]] = []
    trained: dict[Any, list[float]] = {}
    for event in events:
        who = (event.get("role"), event.get("task"), event.get("seed"))
        if event["event"] == "phase_started":
            trained.setdefault(who, []).append(event["time"])
        if event["event"] == "phase_finished":
            found.append((trained[who].pop(), event["time"], "training"))
        if event["event"] == "step_finished":
            name = {"prepare": "preparing", "evaluate": "evaluating", "train": "training starts or ends"}.get(event["step"], "other steps")
            found.append((event["time"] - event["seconds"], event["time"], name))
    return found


def where(began: float, ended: float, events: list[Event]) -> Seconds:
    """Seconds of the command by what was going on."""
    going = intervals(events)
    first, last = min(start for start, _, _ in going), max(stop for _, stop, _ in going)
    names = (*WORK, "training starts or ends", "other steps")
    seconds: Seconds = dict.fromkeys((*names, "KFP between steps"), 0.0)
    for left, right in pairwise(sorted({edge for start, stop, _ in going for edge in (start, stop)})):
        now = {name for start, stop, name in going if start <= left and right <= stop}
        seconds[next((name for name in names if name in now), "KFP between steps")] += right - left
    return seconds | {"before the first step": first - began, "after the last step": ended - last}


def to_first_step(began: float, events: list[Event]) -> Seconds:
    """Seconds from the command to the end of the first optimiser step of the first training, by part."""
    parts: Seconds = {}
    free = began
    for event in events:
        if event["event"] == "step_started" and event["step"] == "train":
            parts["KFP starts the step"] += event["time"] - free
            free = event["time"]
        if event["event"] == "first_step":
            up = event["seconds"]
            parts["training: launcher"] = event["time"] - sum(up.values()) - free
            return parts | {f"training: {part}": seconds for part, seconds in up.items()}
        if event["event"] == "step_finished":
            start = event["time"] - event["seconds"]
            gap = "command, KFP and its first step start" if not parts else "KFP starts the step"
            parts[gap] = parts.get(gap, 0.0) + start - free
            parts[event["step"]] = event["seconds"]
            free = event["time"]
    raise SystemExit("no training step was seen")


def main() -> None:
    """Print two tables."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the example (default 3)")
    options = parser.parse_args()
    least = [
        "phases.joint.steps=10",
        "phases.joint.epochs=null",
        "compare.independent=false",
        "compare.gate.worst_drop=null",
        "cluster.processes_per_node=1",
    ]
    overrides = [word for change in least for word in ("--set", change)] if options.quick else []
    before = machine()
    totals, shares, parts, starts = [], [], [], []
    for _ in range(1 if options.quick else options.rounds):
        began, ended, events = run(overrides)
        found = where(began, ended, events)
        totals.append(ended - began)
        shares.append(1 - sum(found[name] for name in WORK) / (ended - began))
        parts.append(found)
        starts.append(to_first_step(began, events))
    lines = [
        [name, spread([p[name] for p in parts], 1), f"{statistics.median(p[name] / t for p, t in zip(parts, totals, strict=True)):.0%}"]
        for name in parts[0]
    ]
    first = [[name, spread([s.get(name, 0.0) for s in starts])] for name in starts[0]]
    text = (
        f"The whole command: {spread(totals, 1)} s; not preparing, training or evaluating: {spread([100 * s for s in shares], 0)} %.\n\n"
        f"{table(['what goes on', 'seconds', 'share'], lines)}\n\n"
        f"To the first step of training: {spread([sum(s.values()) for s in starts], 1)} s.\n\n"
        f"{table(['part', 'seconds'], first)}"
    )
    publish("pipeline", before, text, options.save)


if __name__ == "__main__":
    main()
