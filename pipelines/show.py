"""What a run looks like while it goes: progress bars on a terminal, one JSON line an event elsewhere."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

Json = dict[str, Any]


class Lines:
    """Every event as it is, one JSON line each."""

    def __enter__(self) -> Lines:
        return self

    def __call__(self, event: Json) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class Bars:
    """A bar for each step and training run, with the losses of its tasks."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", style="dim"),
            TimeElapsedColumn(),
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __call__(self, event: Json) -> None:
        kind = event["event"]
        if kind == "step_started" and not event["step"].startswith("plan"):
            name = _name(event)
            self._bars[name] = self._progress.add_task(name, total=None, said="")
        elif kind in ("phase_started", "progress", "validated", "phase_finished"):
            self._train(event)
        elif kind in ("step_finished", "step_failed"):
            self._end(event)
        elif kind == "stopping":
            self._progress.console.print("stopping now" if event["forced"] else "stopping: state is being saved; Ctrl-C again to stop at once")
        elif kind == "checkpoint":
            self._progress.console.print(f"[dim]checkpoint {event['key']} in {event['seconds']:.1f} s")
        elif kind == "resumed":
            self._progress.console.print(f"[dim]{_run(event)}: going on from step {event['step']}")
        elif kind == "metrics_served":
            self._progress.console.print(f"[dim]metrics at http://localhost:{event['port']}/metrics")
        elif kind == "metrics_not_served":
            self._progress.console.print(f"[dim]no metrics on port {event['port']}: {event['reason']}")

    def _train(self, event: Json) -> None:
        bar = self._bars.get(f"train {_run(event)}")
        if bar is None:
            return
        self._progress.update(bar, total=event.get("steps"), completed=event["step"])
        values = event.get("loss") or {}
        if values:
            losses = "  ".join(f"{task} {value:.3g}" for task, value in values.items() if value is not None)
            self._progress.update(bar, said=("valid " if event["event"] == "validated" else "loss ") + losses)

    def _end(self, event: Json) -> None:
        bar = self._bars.get(_name(event))
        if bar is None:
            return
        self._progress.update(bar, total=1, completed=1)
        if event["event"] == "step_failed":
            self._progress.update(bar, said=f"[red]{event['error']}")
        elif event.get("reused"):
            self._progress.update(bar, said="reused: nothing it depends on has changed")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


def display() -> Lines | Bars:
    """Bars where a person looks on, lines where a program does."""
    return Bars() if sys.stdout.isatty() else Lines()


def _run(event: Json) -> str:
    return " ".join(str(event[k]) for k in ("role", "task") if event.get(k)) + (f" seed {event['seed']}" if event.get("seed") else "")


def _name(event: Json) -> str:
    if event["step"] == "train":
        return f"train {_run(event)}"
    return " ".join(str(event[k]) for k in ("step", "dataset", "task") if event.get(k))
