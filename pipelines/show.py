"""What a run looks like while it goes: progress bars on a terminal, one JSON line an event elsewhere."""

from __future__ import annotations

import json
import sys
from typing import Any

Json = dict[str, Any]


class Lines:
    """Every event as it is, one JSON line each."""

    def __enter__(self) -> Lines:
        return self

    def __call__(self, event: Json) -> None:
        """Write it at once."""
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def __exit__(self, *error: object) -> None:
        pass


class Bars:
    """A bar for each step and training run, with the losses of its tasks."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.fields[mark]}"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", min_width=16)),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", style="dim", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=Console(),
            expand=True,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __call__(self, event: Json) -> None:
        """Update what is on the screen."""
        kind = event["event"]
        if kind == "step_started" and not event["step"].startswith("plan"):
            self._bars[subject(event)] = self._progress.add_task(subject(event), total=None, said="", mark="·")
        elif kind in ("phase_started", "progress", "validated", "phase_finished"):
            self._train(event)
        elif kind in ("step_finished", "step_failed"):
            self._end(event)
        elif kind == "stopping":
            self._say("stopping now" if event["forced"] else "stopping: state is being saved; Ctrl-C again to stop at once without")
        elif kind == "checkpoint":
            self._say(f"{subject(event)}: checkpoint at step {event['step']:,} in {event['seconds']:.1f} s")
        elif kind == "resumed":
            self._say(f"{subject(event)}: going on from step {event['step']:,}")
        elif kind == "metrics_served":
            self._say(f"metrics at http://localhost:{event['port']}/metrics")
        elif kind == "metrics_not_served":
            self._say(f"no metrics on port {event['port']}: {event['reason']}; {event['fix']}")

    def _say(self, text: str) -> None:
        self._progress.console.print(text, style="dim", markup=False, highlight=False)

    def _train(self, event: Json) -> None:
        bar = self._bars.get(subject(event))
        if bar is None:
            return
        self._progress.update(bar, completed=event["step"])
        if "steps" in event:
            self._progress.update(bar, total=event["steps"])
        losses = "  ".join(f"{task} {value:.3g}" for task, value in (event.get("loss") or {}).items() if value is not None)
        if losses:
            self._progress.update(bar, said=f"{'valid' if event['event'] == 'validated' else 'loss'} {losses}")

    def _end(self, event: Json) -> None:
        bar = self._bars.get(subject(event))
        if bar is None:
            return
        if event["event"] == "step_failed":
            self._progress.update(bar, total=1, completed=0, mark="[red]✗", said=event["error"])
        else:
            self._progress.update(bar, total=1, completed=1, mark="[green]✓")
            if event.get("reused"):
                self._progress.update(bar, said="reused: nothing it depends on has changed")
        self._progress.stop_task(bar)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def display() -> Lines | Bars:
    """Bars where a person looks on, lines where a program does."""
    return Bars() if sys.stdout.isatty() else Lines()


def subject(event: Json) -> str:
    """What an event is about, in words; the same for a training run and for the step that starts it."""
    step = event.get("step") if isinstance(event.get("step"), str) else "train"
    words = [str(event[name]) for name in ("role", "dataset", "task") if event.get(name)]
    return " ".join([str(step), *words, *(["seed", str(event["seed"])] if event.get("seed") else [])])
