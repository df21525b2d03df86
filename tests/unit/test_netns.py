"""Network namespaces as machines: they reach one another until a cable is pulled, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.netns import Network, unavailable
from trainer.errors import LaunchError

needs_namespaces = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
CALL = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.5)"


def call(network: Network, caller: int, callee: int) -> str:
    command = [*network.inside(caller), sys.executable, "-S", "-c", CALL, network.address(callee)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip().splitlines()[-1]


@needs_namespaces
def test_machines_have_addresses_of_their_own_and_reach_one_another_until_a_cable_is_pulled():
    with Network(3) as network:
        assert call(network, 1, 0).startswith("ConnectionRefusedError")  # somebody is there, and says no
        network.cut(1)
        assert "timed out" in call(network, 0, 1)
        assert call(network, 2, 0).startswith("ConnectionRefusedError")
        network.join(1)
        # whoever asked in vain remembers that for a moment
        assert any(call(network, 0, 1).startswith("ConnectionRefusedError") for _ in range(20))


@needs_namespaces
def test_nothing_is_left_when_the_network_is_gone():
    with Network(2) as network:
        holders = [holder.pid for holder in network._holders]
        assert not {"switch", "port0", "port1"} & {device.name for device in Path("/sys/class/net").iterdir()}
    assert not any(Path(f"/proc/{pid}").exists() for pid in holders)


def test_what_a_machine_lacks_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="no unshare and no nsenter and no ip"), Network(1):
        pass
    assert "network namespaces" in unavailable()
