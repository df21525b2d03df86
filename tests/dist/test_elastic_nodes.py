"""Two nodes, one of which is preempted: the other goes on, alone if it has to, and takes it back when a pod has taken its place."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from training_inputs import TESTS, ask, document

from components.manifests import render
from components.nodes import Nodes
from components.rendered import pods_of
from components.target import Target

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
STEPS = 1000


def test_a_node_that_is_preempted_is_taken_back_and_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, hurry = tmp_path / "events.jsonl", tmp_path / "hurry"
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")
    monkeypatch.setenv("COTRAIN_EVENTS", str(events))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = document(
        models={"trunk": {"kind": "dawdling:model", "args": {"hurry": str(hurry)}}},
        phases={"joint": {"steps": STEPS}},
        train={"checkpoint": {"every_steps": STEPS // 2, "every_minutes": None}, "validate_every": STEPS},
        cluster={"nodes": 2, "min_nodes": 1, "processes_per_node": 1, "max_restarts": 9},
    )
    request = ask(spec, tmp_path)

    def said(kind: str) -> list[dict[str, Any]]:
        lines = events.read_text().splitlines() if events.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    job = pods_of(render(request, Target(str(tmp_path), image="here/cotrain:1"), "job"))
    nodes = Nodes(job, {"PET_RDZV_CONF": "keep_alive_interval=1,last_call_timeout=1"}, left=tmp_path)

    def preempt() -> None:
        while not said("first_step"):
            time.sleep(0.05)
        nodes.preempt(1)
        while not said("resumed"):
            time.sleep(0.05)
        hurry.touch()

    threading.Thread(target=preempt, daemon=True).start()
    ended = nodes.run()
    assert (ended.code, ended.restarts, ended.lost) == (0, 0, ())
    assert ended.replaced >= 1
    stopped, *_ = said("resumed")
    assert 0 < stopped["step"] < STEPS
    result = json.loads((tmp_path / "results" / "train" / request["key"] / "result.json").read_text())
    assert (result["ranks"], result["steps"]) == (2, {"joint": STEPS})
