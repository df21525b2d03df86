"""Training on machines of their own: network namespaces with an address each, run from the manifests that a cluster would be given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_inputs import TESTS, ask, document

from components import launch, netns
from components.manifests import render
from components.netns import Network, unavailable
from components.nodes import Nodes
from components.rendered import pods_of
from components.target import Target
from trainer.plan import precision
from trainer.scale import Shape, sent_bytes

pytestmark = [
    pytest.mark.dist,
    pytest.mark.timeout(600),
    pytest.mark.skipif(unavailable() is not None, reason=f"needs network namespaces: {unavailable()}"),
]
STEPS = 120
"""Far more than are done until somebody has acted on the first checkpoint."""
SAVES = {"checkpoint": {"every_steps": 4, "every_minutes": None}, "validate_every": STEPS // 2}
FAST = "keep_alive_interval=1,last_call_timeout=1"


@pytest.fixture(autouse=True)
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ranks find the modules of these tests, and don't wait for other trainings of this machine. Gives the events file."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")
    monkeypatch.setenv("COTRAIN_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "events.jsonl"


def said(file: Path, kind: str) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


class Once(threading.Thread):
    """Does something as soon as there is a checkpoint."""

    def __init__(self, events: Path, act: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.events, self.act = events, act
        self.start()

    def run(self) -> None:
        while not said(self.events, "checkpoint"):
            time.sleep(0.02)
        self.act()


def result(root: Path, key: str) -> dict[str, Any]:
    return json.loads((root / "results" / "train" / key / "result.json").read_text())


def test_of_three_machines_one_is_lost_for_good_and_two_go_on_from_the_last_checkpoint(tmp_path: Path, events: Path) -> None:
    cluster = {"nodes": 3, "min_nodes": 2, "processes_per_node": 1, "max_restarts": 2}
    spec = document(phases={"joint": {"steps": STEPS}}, train=SAVES, cluster=cluster)
    request = ask(spec, tmp_path)
    pods = pods_of(render(request, Target(str(tmp_path), image="here/cotrain:1"), "job"))
    with Network(3) as network:
        nodes = Nodes(pods, {"PET_RDZV_CONF": FAST}, network, tmp_path)
        Once(events, lambda: nodes.kill(2, for_good=True))
        ended = nodes.run()
    assert (ended.code, ended.lost, ended.replaced) == (0, (2,), 0)
    # on a busy machine those that are left may need more than one try to meet
    resumed = [event["step"] for event in said(events, "resumed")]
    assert resumed
    assert set(resumed) <= set(range(4, STEPS + 1, 4))
    assert said(events, "phase_started")[0]["step"] == 0
    found = result(tmp_path, request["key"])
    assert (found["ranks"], found["steps"]) == (2, {"joint": STEPS})


def test_a_machine_that_is_cut_off_is_noticed_and_all_start_again_from_the_last_checkpoint(
    tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing arrives and nothing is refused: only waiting has an end (`peer_timeout_s`)."""
    cables: list[Network] = []

    class Cabled(Network):
        def __enter__(self) -> Network:
            cables.append(super().__enter__())
            return cables[0]

    def unplugged_for_a_while() -> None:
        before = len(said(events, "nodes_restarted"))
        cables[0].cut(1)
        while len(said(events, "nodes_restarted")) == before:
            time.sleep(0.02)
        cables[0].join(1)

    monkeypatch.setattr(netns, "Network", Cabled)
    monkeypatch.setenv(launch.NAMESPACES, "1")
    # on a busy machine they may miss one another when they start, too
    cluster = {"nodes": 2, "processes_per_node": 1, "peer_timeout_s": 6, "max_restarts": 9}
    spec = document(phases={"joint": {"steps": STEPS}}, train=SAVES, cluster=cluster)
    request = ask(spec, tmp_path)
    Once(events, unplugged_for_a_while)
    trained = launch.train_here(str(tmp_path), request)
    assert not trained.reused
    again = said(events, "nodes_restarted")
    assert (again[0]["code"], again[0]["restarts"]) == (1, 1)
    assert len(again) < 9
    assert min(event["step"] for event in said(events, "resumed")) >= 4
    assert result(tmp_path, request["key"])["ranks"] == 2


WIDE = {"trunk": {"kind": "mlp", "hidden": [600, 600]}}
UPGRAD = {"kind": "upgrad", "gram": "last_layer"}
TRAFFIC = {
    "stage 0": ({}, {}),
    "stage 1": ({"zero": 1}, {}),
    "stage 2, two micro-batches": ({"zero": 2, "accumulate": 2}, {}),
    "stage 3": ({"zero": 3}, {}),
    "a balancer": ({"zero": 1}, {"balancer": UPGRAD}),
}


def test_what_a_rank_sends_in_a_step_is_what_the_plan_says(tmp_path: Path) -> None:
    """Counted by the kernel, at the network card of each of two machines."""
    specs = [
        document(
            models=WIDE,
            phases={"joint": {"steps": 4} | phase},
            train=train | {"validate_every": 100},
            cluster={"nodes": 2, "processes_per_node": 1},
        )
        for train, phase in TRAFFIC.values()
    ]
    jobs = [{"root": str(tmp_path), "key": ask(spec, tmp_path)["key"]} for spec in specs]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    with Network(2) as network:
        common = os.environ | {
            "MASTER_ADDR": network.address(0), "MASTER_PORT": "29500", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1", "GLOO_SOCKET_IFNAME": network.device(),
        }  # fmt: skip
        ranks = [
            subprocess.Popen(
                [*network.inside(n), sys.executable, str(TESTS / "traffic_rank.py"), str(tmp_path)], env=common | {"RANK": str(n)}
            )
            for n in range(2)
        ]
        assert [rank.wait() for rank in ranks] == [0, 0]
    for number in range(2):
        counted = json.loads((tmp_path / f"rank-{number}.json").read_text())
        for label, spec, job, steps in zip(TRAFFIC, specs, jobs, counted, strict=True):
            assert precision(spec.train, "cpu") == "fp32"
            shape = Shape(result(tmp_path, job["key"])["parameters"], tasks=3, layer_outputs=600, layer_inputs=600)
            expected = sum(sent_bytes(shape, spec.train, 2, "cpu", spec.phases["joint"].balancer).values())
            # the first steps also set up connections, and learn in what order parameters are gathered
            assert steps[-1] == pytest.approx(expected, rel=0.03), label
