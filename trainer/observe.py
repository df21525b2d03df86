"""What a run says while it goes: one JSON line an event, and Prometheus metrics.

Events go to standard output, and to the file that COTRAIN_EVENTS names if it is set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server


def emit(event: str, **fields: Any) -> None:
    """Say that something happened: one JSON line with the time in seconds since the epoch."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str) + "\n"
    target = os.environ.get("COTRAIN_EVENTS")
    if target:
        # one write of one line in append mode: lines of several processes don't mix
        handle = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    if not target or os.environ.get("COTRAIN_EVENTS_ECHO") == "1":
        sys.stdout.write(line)
        sys.stdout.flush()


@contextmanager
def timed(step: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit `step_started` and `step_finished` with `seconds`, and what the body puts into the dict it gets."""
    started = time.perf_counter()
    emit("step_started", step=step, **fields)
    found: dict[str, Any] = {}
    try:
        yield found
    except BaseException as error:
        emit("step_failed", step=step, seconds=round(time.perf_counter() - started, 3), error=type(error).__name__, **fields)
        raise
    emit("step_finished", step=step, seconds=round(time.perf_counter() - started, 3), **fields, **found)


class Metrics:
    """Prometheus metrics of a training run, served from rank 0 while it trains.

    Label children are made once: looking them up costs more than setting them.
    """

    def __init__(self, run: str, tasks: list[str], port: int | None) -> None:
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> dict[str, Any]:
            family = Gauge(f"cotrain_{name}", text, ["run", "task"], registry=self._registry)
            return {task: family.labels(run, task) for task in tasks}

        def single(kind: type, name: str, text: str) -> Any:
            return kind(f"cotrain_{name}", text, ["run"], registry=self._registry).labels(run)

        self._loss = gauge("task_loss", "Mean training loss of a task since the last update")
        self._weight = gauge("task_weight", "Weight of a task's loss")
        self._valid = gauge("task_validation_loss", "Loss of a task on the validation split")
        self._lr = single(Gauge, "learning_rate", "Learning rate")
        self._rate = single(Gauge, "rows_per_second", "Training rows a second over all ranks")
        self._steps = single(Counter, "steps", "Optimiser steps")
        self._rows = single(Counter, "rows", "Training rows seen over all ranks")
        self._checkpoints = single(Counter, "checkpoints", "Checkpoints written")
        self._checkpoint_s = single(Gauge, "checkpoint_seconds", "Seconds the last checkpoint took")
        self._server = None
        self.port: int | None = None
        if port is not None:
            try:
                self._server, _ = start_http_server(port, registry=self._registry)
                self.port = self._server.server_port
                emit("metrics_served", port=self.port)
            except OSError as error:
                # a busy port is no reason to lose a training run
                emit("metrics_not_served", port=port, reason=error.strerror or str(error), fix="choose another observe.port")

    def trained(self, steps: int, rows: int, rate: float, lr: float, loss: dict[str, float], weight: dict[str, float]) -> None:
        """Progress since the last call."""
        self._steps.inc(steps)
        self._rows.inc(rows)
        self._rate.set(rate)
        self._lr.set(lr)
        for task, value in loss.items():
            self._loss[task].set(value)
        for task, value in weight.items():
            self._weight[task].set(value)

    def validated(self, loss: dict[str, float]) -> None:
        """Losses of a validation."""
        for task, value in loss.items():
            self._valid[task].set(value)

    def saved(self, seconds: float) -> None:
        """A checkpoint was written."""
        self._checkpoints.inc()
        self._checkpoint_s.set(seconds)

    def close(self) -> None:
        """Stop serving."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
