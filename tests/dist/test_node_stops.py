"""Two nodes of a run as pods have them: when one is asked to stop both save their state and end at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import document, write_csv

from trainer.check import load_spec
from trainer.node import STOPPED
from trainer.prepare import prepare
from trainer.requests import joint_requests, write_request

pytestmark = pytest.mark.dist
STEPS = 1500


def start(number: int, root: str, key: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(number),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "COTRAIN_CPUS": "1",
        "COTRAIN_EVENTS": str(folder / "events.jsonl"),
        "COTRAIN_TERMINATION_LOG": str(folder / f"message-{number}"),
    }
    with (folder / f"log-{number}").open("wb") as log:
        command = [sys.executable, "-m", "trainer.node", root, key]
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def events(folder: Path, name: str) -> list[dict]:
    file = folder / "events.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [event for event in found if event["event"] == name]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_both_end_when_one_is_asked_to(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv")
    made = document(phases={"joint": {"steps": STEPS}}, cluster={"nodes": 2, "processes_per_node": 1})
    made["data"]["table"]["uri"] = str(tmp_path / "table.csv")
    made["train"]["validate_every"] = STEPS
    spec, root = load_spec(made), str(tmp_path / "runs")
    result = prepare("table", spec.data["table"], root)
    manifest = result.json("manifest.json")
    (request,) = joint_requests(spec, {"table": {"key": result.key, "digest": manifest["digest"], "rows": manifest["rows"]}})
    write_request(root, request)

    port = free_port()
    nodes = [start(number, root, request["key"], port, tmp_path) for number in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not events(tmp_path, "first_step"):
            assert time.monotonic() < deadline
            assert [node.poll() for node in nodes] == [None, None], (tmp_path / "log-0").read_text()
            time.sleep(0.05)
        nodes[1].send_signal(signal.SIGTERM)
        # torchrun of the node that was not asked would wait 300 s for the other one, if it believed in success
        assert [node.wait(100) for node in nodes] == [STOPPED, STOPPED]
        for number in range(2):
            assert json.loads((tmp_path / f"message-{number}").read_text())["type"] == "Stopped"
        (saved,) = events(tmp_path, "checkpoint")
        assert 0 < saved["step"] < STEPS
    finally:
        for node in nodes:
            node.terminate()
