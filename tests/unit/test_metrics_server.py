"""What Prometheus scrapes, over HTTP, of a run that is going on in this process."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from training_inputs import ask, document

from trainer.errors import Stopped
from trainer.metrics_server import Metrics
from trainer.run import Run
from trainer.world import World


def scrape(port: int) -> dict[tuple[str | None, ...], float]:
    """Values by name and task, and of two tasks by both."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    pair = lambda labels: (labels["other"],) if "other" in labels else ()  # noqa: E731
    return {(sample.name, sample.labels.get("task"), *pair(sample.labels)): sample.value for sample in samples}


@pytest.fixture(autouse=True)
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("COTRAIN_EVENTS", str(file))
    return lambda kind: [e for e in map(json.loads, file.read_text().splitlines() if file.exists() else []) if e["event"] == kind]


class Going(threading.Thread):
    """A run of one rank in a thread of its own, until it is stopped."""

    def __init__(self, root: Path, port: int, **changes: Any) -> None:
        super().__init__(daemon=True)
        spec = document(observe={"port": port, "every_s": 0.05}, **changes)
        self.world, self.error = World(0, 1, 0, torch.device("cpu")), None
        self.training = Run(ask(spec, root), str(root), self.world, time.time())
        self.start()

    def run(self) -> None:
        try:
            self.training.run()
        except Stopped as error:
            self.error = error

    def stop(self) -> None:
        self.world.stop_asked = True
        self.join()


def test_a_run_is_watched_while_it_trains(tmp_path: Path, events) -> None:
    train = {"validate_every": 20, "checkpoint": {"every_steps": 30}}
    going = Going(tmp_path, 0, phases={"joint": {"steps": 10**6, "balancer": "uncertainty"}}, train=train)
    try:
        port = events("metrics_served")[0]["port"]
        while True:
            found = scrape(port)
            if found[("cotrain_checkpoints_total", None)] and found[("cotrain_steps_total", None)]:
                break
            assert going.is_alive()
            time.sleep(0.02)
        for task in ("plant", "height", "hard"):
            assert found["cotrain_task_loss", task] > 0
            assert found["cotrain_task_weight", task] > 0
            assert found["cotrain_task_validation_loss", task] > 0
        # 25 of each dataset a step; who asks just then may be told the steps of one moment and the rows of the next
        asked = [scrape(port) for _ in range(20)]
        assert any(one["cotrain_rows_total", None] == 50 * one["cotrain_steps_total", None] for one in asked)
        assert found["cotrain_rows_per_second", None] > 0
        assert 0 < found["cotrain_learning_rate", None] <= 0.01
        assert found["cotrain_checkpoint_seconds", None] > 0
    finally:
        going.stop()
    assert isinstance(going.error, Stopped)
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_what_looks_at_task_gradients_find_is_scraped_and_kept(tmp_path: Path, events) -> None:
    going = Going(tmp_path, 0, phases={"joint": {"steps": 10**6, "balancer": {"kind": "upgrad", "probe_every": 2}}})
    try:
        port = events("metrics_served")[0]["port"]
        while not (found := scrape(port))["cotrain_steps_total", None]:
            assert going.is_alive()
            time.sleep(0.02)
    finally:
        going.stop()
    looks = [record for record in going.training.saved.history if record["split"] == "look"]
    assert [look["step"] for look in looks] == [1 + 2 * i for i in range(len(looks))]
    # each of some look: they go on while the page is written
    for task, other in (("plant", "height"), ("height", "plant"), ("hard", "plant")):
        assert found["cotrain_task_cosine", task, other] in [look["cosine"][task][other] for look in looks]
    assert 0 < abs(looks[0]["cosine"]["plant"]["height"]) < 1
    assert found["cotrain_update_cosine", None] in [look["faithful"] for look in looks]
    assert found["cotrain_tasks_made_worse", None] in [look["worse"] for look in looks]
    assert found["cotrain_balancer_fallbacks_total", None] == 0


def test_steps_on_whose_gradients_a_balancer_finds_no_weights_are_told_and_counted(tmp_path: Path, events) -> None:
    # after a first step of such a length nothing is finite
    train = {"optimizer": {"kind": "sgd", "lr": 1e38}, "clip": None, "validate_every": 10**6}
    going = Going(tmp_path, 0, phases={"joint": {"steps": 10**6, "balancer": "upgrad"}}, train=train)
    try:
        port = events("metrics_served")[0]["port"]
        while not (counted := scrape(port)["cotrain_balancer_fallbacks_total", None]):
            assert going.is_alive()
            time.sleep(0.02)
    finally:
        going.stop()
    told = [(event["step"], event["fallbacks"]) for event in events("progress")]
    assert counted in [fallbacks for _, fallbacks in told]
    assert all(0 <= step - fallbacks <= 2 for step, fallbacks in told)


def test_a_busy_port_does_not_stop_training(tmp_path: Path, events) -> None:
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        going = Going(tmp_path, busy.getsockname()[1], phases={"joint": {"steps": 3}})
        going.join()
    (said,) = events("metrics_not_served")
    assert said["port"] == going.training.spec.observe.port
    assert "observe.port" in said["fix"]
    assert (tmp_path / "results" / "train" / going.training.key / "manifest.json").exists()


def test_nothing_is_served_where_no_port_is_named() -> None:
    assert Metrics("run", ["a"], None).port is None


def test_two_runs_of_one_process_do_not_meet() -> None:
    one, other = Metrics("one", ["a"], 0), Metrics("other", ["a"], 0)
    try:
        one.trained(2, 50, 10.0, 0.1, {"a": 1.0}, {"a": 1.0})
        assert scrape(one.port or 0)["cotrain_steps_total", None] == 2
        assert scrape(other.port or 0)["cotrain_steps_total", None] == 0
    finally:
        one.close()
        other.close()
