"""Prometheus metrics of a training run, served from rank 0 while it trains."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from trainer.observe import emit

PORT = "COTRAIN_METRICS_PORT"
"""Set in a pod to the port that it says it serves metrics on; it goes over the document's `observe.port`."""


class Metrics:
    """Gauges and counters of one run, by task.

    Label children are made once: looking them up costs more than setting them.
    """

    def __init__(self, run: str, tasks: list[str], port: int | None) -> None:
        port = int(os.environ[PORT]) if os.environ.get(PORT) else port
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
        cosine = Gauge("cotrain_task_cosine", "Cosine of the gradients of two tasks", ["run", "task", "other"], registry=self._registry)
        self._cosine = {(a, b): cosine.labels(run, a, b) for a in tasks for b in tasks if a != b}
        self._faithful = single(Gauge, "update_cosine", "Cosine of the update with the one that exact task gradients would give")
        self._worse = single(Gauge, "tasks_made_worse", "Share of tasks whose loss the update makes worse, to first order")
        self._fallbacks = single(Counter, "balancer_fallbacks", "Micro-batches on whose task gradients the balancer found no weights")
        self._fell_back: dict[str, int] = {}
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

    def looked(self, cosine: dict[str, dict[str, float]], faithful: float, worse: float) -> None:
        """What an exact look at the task gradients found."""
        for task, others in cosine.items():
            for other, value in others.items():
                if other != task:
                    self._cosine[task, other].set(value)
        self._faithful.set(faithful)
        self._worse.set(worse)

    def fell_back(self, phase: str, times: int) -> None:
        """How often the balancer of a phase has found no weights up to now."""
        self._fallbacks.inc(times - self._fell_back.get(phase, 0))
        self._fell_back[phase] = times

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
