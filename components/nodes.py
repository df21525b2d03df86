"""The nodes of a rendered TrainJob or Job as processes of this machine, so that what is tested is what is shipped.

Each node runs the command of the manifest's container in the environment that it would have there: what the manifest says,
what the Trainer injects (PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT) and the Job controller
(JOB_COMPLETION_INDEX). What a cluster gives by reference, Secrets and ConfigMaps, comes from this machine's environment, and so
does what the pod says of its file system. A node that ends is dealt with as the failure policy says.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from components.netns import Network
from components.rendered import Pods, expand
from trainer.errors import LaunchError
from trainer.observe import emit

MARK = "COTRAIN_NODE"
"""Tells the processes of a node from all others, whoever their parent is by now."""
_OF_THE_POD = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "USER", "LOGNAME", "COTRAIN_TERMINATION_LOG")
_LOOK_S = 0.1
_GRACE_S = 15.0
"""From SIGTERM to SIGKILL for nodes whose job is over: they lost a peer and can agree on nothing any more."""


@dataclass(frozen=True)
class Ended:
    """How a job ended: the exit code that decided it (negative: the number of a signal), and what happened on the way."""

    code: int
    restarts: int = 0
    """How often all nodes were started again."""
    replaced: int = 0
    """How often a single one was."""
    stopped: bool = False
    lost: tuple[int, ...] = ()
    """Nodes that were lost for good."""


@dataclass
class _Node:
    number: int
    process: subprocess.Popen[bytes]
    failures: int = 0
    code: int | None = None


@dataclass
class Nodes:
    """Runs a job. SIGTERM to this process is passed on to every node, once, and they are waited for.

    Args:
        pods: what runs on each node.
        environment: what this machine insists on, over what the manifest says.
        network: machines with addresses of their own; by default all nodes share this machine's loopback address.
        left: a folder where nodes leave a word when they fail, as the termination message of a pod.
        again: called before all nodes are started again.
    """

    pods: Pods
    environment: Mapping[str, str] = field(default_factory=dict)
    network: Network | None = None
    left: Path | None = None
    again: Callable[[], None] = lambda: None
    _running: list[_Node] = field(default_factory=list)
    _down: set[int] = field(default_factory=set)
    _lost: set[int] = field(default_factory=set)
    _asked: bool = False
    _restarts: int = 0
    _replaced: int = 0
    _port: int = 0
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def run(self) -> Ended:
        """Start the nodes and wait for their end."""
        self._port = _free_port()
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._stop) if main else None
        try:
            while True:
                code = self._attempt()
                limit = self.pods.policy.restarts if self.pods.policy.counts(code) else 0
                if code == 0 or self._asked or self._lost or self._restarts >= limit:
                    return Ended(code, self._restarts, self._replaced, self._asked, tuple(sorted(self._lost)))
                self._restarts += 1
                emit("nodes_restarted", code=code, restarts=self._restarts, of=self.pods.policy.restarts)
                self.again()
        finally:
            self._end()
            if main:
                signal.signal(signal.SIGTERM, before)

    def kill(self, number: int, for_good: bool = False) -> None:
        """As if a machine lost its power: all processes of a node end at once. A pod takes its place, unless it is for good."""
        (self._lost if for_good else self._down).add(number)
        self._clear(number)

    def preempt(self, number: int) -> None:
        """As if a machine was drained: its node is asked to stop, and a pod takes its place."""
        for node in self._running:
            if node.number == number and node.code is None:
                node.process.terminate()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _attempt(self) -> int:
        """Run until all nodes are done, or one ends in such a way that all have to: the exit code that decided it."""
        self._running = [_Node(n, self._start(n)) for n in range(self.pods.nodes) if n not in self._lost]
        passed = False
        while any(node.code is None for node in self._running):
            if self._asked and not passed:
                passed = True
                self._terminate()
            for node in [node for node in self._running if node.code is None]:
                node.code = node.process.poll()
                if not node.code:
                    continue
                self._clear(node.number)  # a pod ends with its first process
                if not self._asked and self._ends_all(node):
                    self._end()
                    return node.code
            time.sleep(_LOOK_S)
        codes = [node.code for node in self._running if node.code and node.number not in self._lost]
        return codes[0] if codes else 0

    def _ends_all(self, node: _Node) -> bool:
        """What becomes of a node that failed: another takes its place, the others do without it, or all end."""
        policy, code = self.pods.policy, node.code or 0
        if node.number in self._lost:
            emit("node_lost", node=node.number, left=self.pods.nodes - len(self._lost))
            return self.pods.nodes - len(self._lost) < self.pods.least
        forgiven = node.number in self._down or code in policy.uncounted
        self._down.discard(node.number)
        if not forgiven and not (policy.each and policy.counts(code) and node.failures < policy.restarts):
            return True
        node.failures += not forgiven
        self._replaced += 1
        emit("node_replaced", node=node.number, code=code)
        node.process, node.code = self._start(node.number), None
        return False

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        environment = self._environment(number)
        command = [expand(word, environment) for word in self.pods.command]
        if command[0] in ("python", "python3"):
            command[0] = sys.executable  # the interpreter of the image
        before = self.network.inside(number) if self.network else []
        try:
            return subprocess.Popen([*before, *command], env=environment)
        except OSError as error:
            raise LaunchError.at("command", f"'{command[0]}' can't be started: {error.strerror}", "correct the command") from error

    def _environment(self, number: int) -> dict[str, str]:
        """What a node's processes see; what comes later wins."""
        address = self.network.address(number) if self.network else "127.0.0.1"
        device = self.network.device() if self.network else "lo"
        injected = {
            "PET_NNODES": str(self.pods.nodes),
            "PET_NPROC_PER_NODE": str(self.pods.processes),
            "PET_NODE_RANK": str(number),
            "PET_MASTER_ADDR": self.network.address(0) if self.network else "127.0.0.1",
            "PET_MASTER_PORT": str(self._port),
            "JOB_COMPLETION_INDEX": str(number),
        }
        said = self.pods.environment(number, address, self._restarts, injected)
        here = {
            MARK: f"{self._name}-{number}",
            # the nodes share this machine's cores
            "COTRAIN_CPUS": str(max(1, (os.cpu_count() or 1) // self.pods.nodes)),
            # in a cluster a node finds its address by its name; these have none
            "PET_LOCAL_ADDR": address,
            "GLOO_SOCKET_IFNAME": device,
            "NCCL_SOCKET_IFNAME": device,
        }
        if self.left:
            here["COTRAIN_TERMINATION_LOG"] = str(self.left / f"node-{number}-{self._restarts}-{self._replaced}.json")
        own = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
        pod = {name: value for name, value in said.items() if name not in _OF_THE_POD}
        return own | pod | here | self._devices(number) | dict(self.environment)

    def _devices(self, number: int) -> dict[str, str]:
        """A share of the GPUs that are visible by number, where there are enough for every node to have its own."""
        visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        if len(visible) < self.pods.nodes * self.pods.processes:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible[number * self.pods.processes : (number + 1) * self.pods.processes])}

    def _terminate(self) -> None:
        for node in self._running:
            if node.code is None:
                with suppress(OSError):
                    node.process.terminate()

    def _end(self) -> None:
        """End what still runs: politely, then not."""
        self._terminate()
        late = time.monotonic() + _GRACE_S
        while any(node.process.poll() is None for node in self._running) and time.monotonic() < late:
            time.sleep(_LOOK_S)
        for node in self._running:
            self._clear(node.number)
            node.process.wait()
        self._running = []

    def _clear(self, number: int) -> None:
        """Kill every process of a node; again, as long as there is one that was only just started."""
        while found := _marked(f"{self._name}-{number}"):
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.01)  # not to be waited for here: their parent reads how they ended


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
