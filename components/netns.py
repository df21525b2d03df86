"""Machines of their own on this one: a network namespace and an address each, joined by a switch.

Nothing of it has a name outside: the namespaces live as long as the processes in them, so nothing is left behind
however the command ends. Root makes them as they are; others make them in a user namespace, where the machine allows it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.errors import LaunchError

_TOOLS = ("unshare", "nsenter", "ip")
_DEVICE = "eth0"
_TIMEOUT_S = 10.0


class Network:
    """`nodes` namespaces with the addresses 10.77.0.1 and on. A context manager.

    Raises:
        LaunchError: on entering, where this machine does not allow it.
    """

    def __init__(self, nodes: int) -> None:
        if not 1 <= nodes <= 250:
            raise ValueError(f"{nodes} nodes: one network holds 1 to 250")
        self.nodes = nodes
        self._user = os.geteuid() != 0
        self._switch: subprocess.Popen[bytes] | None = None
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def address(self, node: int) -> str:
        """The IPv4 address of a node."""
        return f"10.77.0.{node + 1}"

    def device(self) -> str:
        """The name of every node's network interface."""
        return _DEVICE

    def inside(self, node: int) -> list[str]:
        """What a command begins with to run on a node."""
        return self._enter(self._holders[node])

    def cut(self, node: int) -> None:
        """Pull a node's cable: what is sent to it or by it is lost, and nobody is told."""
        self._ip(self._switch, f"link set port{node} down")

    def join(self, node: int) -> None:
        """Plug a node's cable in again."""
        self._ip(self._switch, f"link set port{node} up")

    def _make(self) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise LaunchError.at("network namespaces", f"this machine has no {' and no '.join(missing)}", "install util-linux and iproute2")
        own_user = ["--user", "--map-root-user"] if self._user else []
        self._switch = self._hold(["unshare", *own_user, "--net"], 0)
        self._ip(self._switch, "link add switch type bridge", "link set switch up")
        for node in range(self.nodes):
            before = [*self._enter(self._switch), "unshare", "--net"] if self._user else ["unshare", "--net"]
            holder = self._hold(before, self._switch.pid)
            self._holders.append(holder)
            self._ip(
                self._switch,
                f"link add port{node} type veth peer name {_DEVICE} netns {holder.pid}",
                f"link set port{node} master switch up",
            )
            self._ip(holder, "link set lo up", f"addr add {self.address(node)}/24 dev {_DEVICE}", f"link set {_DEVICE} up")

    def _hold(self, before: list[str], other: int) -> subprocess.Popen[bytes]:
        """A process that does nothing but keep a new namespace; it ends when our end of its pipe is gone, however that comes."""
        holder = subprocess.Popen([*before, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        theirs = [os.readlink(f"/proc/{pid or 'self'}/ns/net") for pid in {0, other}]
        late = time.monotonic() + _TIMEOUT_S
        while holder.poll() is None and time.monotonic() < late:
            try:
                made = os.readlink(f"/proc/{holder.pid}/ns/net") not in theirs
                # only then is everything set up: in a user namespace of one's own nobody is root before
                if made and Path(f"/proc/{holder.pid}/comm").read_text() == "cat\n":
                    return holder
            except OSError:
                pass  # it has just ended, or is another's for the moment
            time.sleep(0.005)
        holder.kill()
        said = holder.communicate()[1].decode().strip()
        raise LaunchError.at("network namespaces", f"this machine does not allow them: {said or 'unshare hangs'}", "run as root")

    def _enter(self, holder: subprocess.Popen[bytes]) -> list[str]:
        user = ["--user", "--preserve-credentials"] if self._user else []
        return ["nsenter", "--target", str(holder.pid), *user, "--net"]

    def _ip(self, where: subprocess.Popen[bytes] | None, *lines: str) -> None:
        if where is None:
            raise RuntimeError("the network is not up")
        command = [*self._enter(where), "ip", "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise LaunchError.at("network namespaces", f"{lines[0]!r} failed: {said[0] if said else done.returncode}", "run as root")

    def _end(self) -> None:
        for holder in [*self._holders, self._switch]:
            if holder is not None:
                holder.kill()
                holder.communicate()
        self._holders, self._switch = [], None


def unavailable() -> str | None:
    """Why this machine can't have such a network; None where it can."""
    try:
        with Network(1):
            return None
    except (LaunchError, OSError, subprocess.SubprocessError) as error:
        return str(error).splitlines()[0]
