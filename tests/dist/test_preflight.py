"""The preflight with real nodes, a real store and real faults: each is said with its remedy, within seconds."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from preflight_nodes import Node

from trainer.stores import open_store

pytestmark = pytest.mark.dist
KEY = "0123456789abcdef01234567"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1] - 1  # they meet one port further


@pytest.fixture
def store(s3_bucket):
    root = s3_bucket()
    open_store(root).write(f"requests/train/{KEY}.json", b"{}")
    return root


@pytest.fixture
def start(tmp_path: Path):
    port = free_port()

    def run(number: int, nodes: int, root: str, **changed: str) -> Node:
        environment = {
            "PET_NNODES": str(nodes),
            "PET_NODE_RANK": str(number),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "COTRAIN_ROOT": root,
            "COTRAIN_KEY": KEY,
            "COTRAIN_SHM_BYTES": "4096",
            "COTRAIN_PREFLIGHT_WAIT_S": "60",
            "OMP_NUM_THREADS": "1",
        }
        return Node(number, tmp_path, {**os.environ, **environment, **changed})

    return run


def test_nodes_that_have_all_they_need_pass(start, store):
    nodes = [start(number, 3, store) for number in range(3)]
    assert [node.ended()[0] for node in nodes] == [0, 0, 0]
    assert not list(open_store(store).list("preflight"))


def test_the_node_that_does_not_come_is_named_by_all_that_did(start, store):
    nodes = [start(number, 3, store, COTRAIN_PREFLIGHT_WAIT_S="4") for number in (0, 2)]
    for node in nodes:
        code, said = node.ended()
        assert code == 2
        assert "node 1: did not come within 4 s" in said
        assert "fix: " in said
        assert node.word["exit_code"] == 2


def test_a_node_whose_first_node_is_not_there_says_so(start, store):
    code, said = start(1, 2, store, COTRAIN_PREFLIGHT_WAIT_S="1").ended()
    assert code == 2
    assert "node 0: node 1 can't reach it at 127.0.0.1" in said
    assert "nothing listens there yet" in said


def test_every_node_learns_what_one_of_them_lacks(start, store):
    well, poor = start(0, 2, store), start(1, 2, store, COTRAIN_SHM_BYTES=str(10**15), TMPDIR="/proc")
    for node, place in ((well, "node 1: /dev/shm"), (poor, "/dev/shm")):
        code, _ = node.ended()
        assert code == 2
        places = [fault["place"] for fault in node.word["faults"]]
        assert places == [place, place.replace("/dev/shm", "/proc")]
    assert "cluster.shm_gib asks for 931323 GiB" in poor.ended()[1]


def test_a_clock_that_is_wrong_is_found_by_its_peers_and_by_the_store(start, store, tmp_path):
    folder = tmp_path / "root"
    open_store(str(folder)).write(f"requests/train/{KEY}.json", b"{}")
    nodes = [start(number, 3, str(folder), TEST_CLOCK_AHEAD_S="120" if number == 1 else "0") for number in range(3)]
    for node in nodes:
        code, said = node.ended()
        assert code == 2
        assert re.search(r"node 1: its clock is 1(19|2\d) s ahead", said)
    code, said = start(0, 1, store, TEST_CLOCK_AHEAD_S="120").ended()
    assert code == 2
    assert "this machine's clock is 1" in said
    assert "ahead of that of s3://" in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"COTRAIN_KEY": "f" * 24}, "the launcher wrote"),
        ({"COTRAIN_ROOT": "s3://there-is-no-such-bucket/x"}, "create the bucket"),
        ({"COTRAIN_ROOT": "/proc/runs"}, "read and write /proc/runs"),
        ({"COTRAIN_ROOT": ""}, "COTRAIN_ROOT: is not set"),
        ({"COTRAIN_GPUS_PER_NODE": "8"}, "torch sees none"),
    ],
)
def test_what_a_node_lacks_is_said_with_what_to_do(start, store, changed, said):
    code, output = start(0, 1, store, **changed).ended()
    assert code == 2
    assert said in output


def test_a_run_that_is_trained_needs_nobody(start, store):
    open_store(store).write(f"results/train/{KEY}/manifest.json", b"{}")
    assert start(1, 2, store, COTRAIN_SHM_BYTES=str(10**15)).ended()[0] == 0
