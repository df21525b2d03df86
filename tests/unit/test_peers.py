"""What waiting for a peer comes to: not there yet is waited for, there and out of reach is a fault within seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import peers
from trainer.peers import SKEW_S, Meeting, meet, reach, skewed


@pytest.fixture
def full():
    """A port that swallows connections as a firewall does: its queue is full and nobody takes from it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()[1]
        for filler in fillers:
            filler.close()


@pytest.fixture
def free():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]  # bound, not listening: refused


def test_how_a_peer_is_out_of_reach_is_told_apart(full, free, monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_S", 0.3)
    assert reach("127.0.0.1", full) == "silent"
    assert reach("127.0.0.1", free) == "refused"
    assert reach("there-is-no-such-host.invalid", 1) in ("unknown", "dns")


def test_a_peer_that_swallows_connections_is_cut_off_long_before_it_is_late(full, monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_S", 0.2)
    monkeypatch.setattr(peers, "CUT_OFF_S", 0.5)
    (fault,) = meet(Meeting(1, 2, "127.0.0.1", full, wait_s=600), [], gpu=False, say=lambda line: None)
    assert fault.place == "node 0"
    assert "connections are swallowed" in fault.finding
    assert "NetworkPolicy" in fault.remedy


def test_a_peer_that_only_starts_is_waited_for_and_said_to_be(free, monkeypatch):
    monkeypatch.setattr(peers, "_SAY_S", 0.1)
    said: list[str] = []
    (fault,) = meet(Meeting(3, 4, "127.0.0.1", free, wait_s=0.5), [], gpu=False, say=said.append)
    assert "nothing listens there yet" in fault.finding
    assert said
    assert said[0].startswith("node 3 waits for node 0")


PLACED = ["job-0.job", "job-1.job"]


@pytest.fixture
def names(monkeypatch):
    """Who has an address, as the name server of a cluster knows it: pods that a machine has room for. All at this one."""
    known = list(PLACED)
    lookup = socket.getaddrinfo

    def asked(host, *rest, **more):
        if host not in known and host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(peers, "_SAY_S", 0.05)
    return known


def test_time_in_which_no_machine_has_room_for_the_first_node_is_not_counted(names, free):
    names.remove("job-0.job")
    meeting = Meeting(1, 2, "job-0.job", free, wait_s=0.3)
    said: list[str] = []
    started = time.monotonic()
    threading.Timer(1.5, lambda: names.append("job-0.job")).start()
    (fault,) = meet(meeting, [], gpu=False, say=said.append)
    assert time.monotonic() - started > 1.5
    assert "there is no such name yet" in said[0]
    assert "nothing listens there yet" in fault.finding


def test_nor_is_that_in_which_there_is_none_for_another(names, monkeypatch):
    names.remove("job-1.job")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    monkeypatch.setattr(peers, "_PART_S", 0.1)
    monkeypatch.setattr(Meeting, "name_of", lambda self, node: f"job-{node}.job")
    started = time.monotonic()
    threading.Timer(2.0, lambda: names.append("job-1.job")).start()
    (fault,) = meet(Meeting(0, 2, "127.0.0.1", port, wait_s=1.5), [], gpu=False, say=lambda line: None)
    assert time.monotonic() - started > 2.0
    assert fault.place == "node 1"


def test_where_a_node_has_no_name_itself_names_say_nothing(names, free):
    names.clear()
    (fault,) = meet(Meeting(1, 2, "job-0.job", free, wait_s=0.3), [], gpu=False, say=lambda line: None)
    assert "there is no such name yet" in fault.finding


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("digits-joint-ac93-node-0-0.digits-joint-ac93", "digits-joint-ac93-node-0-7.digits-joint-ac93"),
        ("digits-joint-ac93-0.digits-joint-ac93", "digits-joint-ac93-7.digits-joint-ac93"),
        ("job-0", "job-7"),
        ("10.0.0.1", None),
        ("localhost", None),
    ],
)
def test_peers_are_called_after_the_first_one(host, name):
    assert Meeting(0, 8, host, 29501, 1).name_of(7) == name


def test_they_meet_beside_torchruns_port_and_not_at_it():
    environ = {"PET_NODE_RANK": "1", "PET_NNODES": "2", "PET_MASTER_ADDR": "job-0.job", "PET_MASTER_PORT": "29500"}
    assert Meeting.from_environment(environ, 5) == Meeting(1, 2, "job-0.job", 29501, 5)


def test_a_clock_is_judged_by_the_middle_of_all():
    assert skewed([100.0, 100.5, 99.5]) == []
    (fault,) = skewed([100.0, 100.0, 100.0 - 2 * SKEW_S])
    assert fault.place == "node 2"
    assert "60 s behind" in fault.finding


@pytest.mark.parametrize("command", [["trainer.preflight"], ["trainer.node", "/nowhere", "key"]])
def test_the_first_process_of_a_container_hears_that_it_is_to_end(command, free):
    """By a handler of its own: the kernel keeps signals that it doesn't handle from it, and the pod would stay for its grace period."""
    environment = os.environ | {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free - 1)}
    handled = 1 << (signal.SIGTERM - 1)
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & handled:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 143
