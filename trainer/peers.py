"""Whether the nodes of a run can talk to each other: they meet, say what each found, add up a number and compare clocks.

Node 0 keeps a table (a TCPStore) next to the port that torchrun will use; the others come to it. Who waits says for whom. A peer
that is not there yet is waited for: without an address, which a pod has none of as long as no machine has room for it, for as long
as it takes; with one, but not listening, for as long as a meeting allows. One that is there and can't be reached is a fault within a
minute.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from trainer.errors import Fault

CUT_OFF_S = 60.0
"""How long a peer that has an address may swallow connections before it counts as cut off.

Name servers give away the address of a pod that is gone for up to half a minute, and policies of a network take a moment to apply.
"""
REDUCE_S = 30.0
SKEW_S = 30.0
"""Clocks that differ by more are a fault: logs and deadlines contradict each other, and stores refuse requests."""
_SAY_S = 10.0
_CONNECT_S = 3.0
_SOON_S = 60.0
"""Peers that come within this are seen at once; after that it may be hours, and name servers are asked less often."""
_PART_S = 10.0
_NETWORK = (
    "allow all TCP ports between the pods of a training job: NetworkPolicy (k8s/components/network-policy does), service mesh, firewall"
)


@dataclass(frozen=True)
class Meeting:
    """Which node this is, of how many, and where they meet. `wait_s`: how long peers have to start once they have an address."""

    node: int
    nodes: int
    host: str
    port: int
    wait_s: float

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], wait_s: float) -> Meeting:
        """What torchrun would do, one port further: a peer's torchrun that still runs is never mistaken for the meeting."""
        return cls(
            int(environ.get("PET_NODE_RANK") or 0),
            int((environ.get("PET_NNODES") or "1").partition(":")[0]),
            environ.get("PET_MASTER_ADDR") or "127.0.0.1",
            int(environ.get("PET_MASTER_PORT") or 29500) + 1,
            wait_s,
        )

    def name_of(self, node: int) -> str | None:
        """The host name of a node, where it follows from that of node 0 (`job-node-0-0.job`)."""
        found = re.fullmatch(r"(.*[a-z][a-z0-9-]*-)0((?:\.[a-z][^:]*)?)", self.host)
        return f"{found[1]}{node}{found[2]}" if found else None

    def unplaced(self, node: int) -> bool:
        """Whether a node has no address yet. Where this one's own name has none either, names say nothing."""
        own, other = self.name_of(self.node), self.name_of(node)
        return bool(own and other) and not _has_address(str(other)) and _has_address(str(own))


def _has_address(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except socket.gaierror as error:
        return error.errno == socket.EAI_AGAIN  # no answer is no answer


def reach(host: str, port: int) -> str:
    """What a connection comes to: open, refused, unknown (no such name), dns (no answer) or silent."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
        return "open"
    except socket.gaierror as error:
        return "dns" if error.errno == socket.EAI_AGAIN else "unknown"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"


def meet(
    meeting: Meeting, found: Sequence[Fault], gpu: bool, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> list[Fault]:
    """Every fault of the run's network, and those that other nodes found in themselves.

    Args:
        found: this node's own faults, which the others are told.
        gpu: whether to add up over NCCL instead of gloo.
    """
    if meeting.node and (fault := _come(meeting, say)):
        return [fault]
    try:
        return _at_table(meeting, found, gpu, say)
    except RuntimeError as error:  # torch's own errors derive from it
        if meeting.node == 0:
            return [Fault(f"port {meeting.port}", f"node 0 can't listen there: {_first_line(error)}", "set another PET_MASTER_PORT")]
        return [Fault("node 0", f"node {meeting.node} lost it: {_first_line(error)}", _REMEDY["refused"])]


def _at_table(meeting: Meeting, found: Sequence[Fault], gpu: bool, say: Callable[[str], None]) -> list[Fault]:
    from torch.distributed import TCPStore

    table = TCPStore(meeting.host, meeting.port, is_master=meeting.node == 0, wait_for_workers=False, timeout=timedelta(seconds=REDUCE_S))
    table.set(f"found/{meeting.node}", json.dumps([vars(fault) for fault in found]))
    missing: list[int] = []
    try:
        missing = _gather(table, meeting, "found", range(meeting.nodes), meeting.wait_s, say)
        if missing:
            table.set("absent", json.dumps(missing))
            return [_absent(meeting, node) for node in missing]
        others = _found_by_others(table, meeting)
        if others or found:
            return others
        return _add_up(table, meeting, gpu)
    finally:
        # the table lives in node 0: it stays until everybody has read what is in it
        table.set(f"done/{meeting.node}", "")
        if meeting.node == 0:
            _gather(table, meeting, "done", set(range(meeting.nodes)) - set(missing), _PART_S, lambda line: None)


def _come(meeting: Meeting, say: Callable[[str], None]) -> Fault | None:
    """Wait until node 0 listens."""
    started = said = last = time.monotonic()
    waited_s = 0.0
    bad_since: float | None = None
    while (state := reach(meeting.host, meeting.port)) != "open":
        now = time.monotonic()
        waited_s, last = waited_s + (0.0 if state == "unknown" and meeting.unplaced(0) else now - last), now
        bad_since = (bad_since or now) if state in ("silent", "dns") else None
        if now - said > _SAY_S:
            said = now
            say(f"node {meeting.node} waits for node 0 at {meeting.host}:{meeting.port}: {_WORDS[state]} ({now - started:.0f} s)")
        if waited_s > meeting.wait_s or (bad_since and now - bad_since > CUT_OFF_S):
            return _unreachable(meeting, 0, f"{meeting.host}:{meeting.port}", state)
        time.sleep(0.2 if now - started < _SOON_S else 2.0)
    return None


_WORDS = {
    "unknown": "there is no such name yet",
    "dns": "the name server does not answer",
    "refused": "nothing listens there yet",
    "silent": "connections are swallowed",
    "open": "it answers",
}
_REMEDY = {
    "unknown": "see why its pod has not started: kubectl describe pod; raise COTRAIN_PREFLIGHT_WAIT_S if it only takes longer",
    "dns": "let training pods reach the cluster's DNS, port 53 over UDP and TCP: NetworkPolicy (k8s/components/network-policy does)",
    "refused": "see the log of its init container: kubectl logs POD -c preflight",
    "silent": _NETWORK,
    "open": "see the log of its init container: kubectl logs POD -c preflight",
}


def _unreachable(meeting: Meeting, node: int, where: str, state: str) -> Fault:
    return Fault(f"node {node}", f"node {meeting.node} can't reach it at {where}: {_WORDS[state]}", _REMEDY[state])


def _absent(meeting: Meeting, node: int) -> Fault:
    name = meeting.name_of(node)
    if meeting.node == 0 and name:
        state = reach(name, meeting.port)
        return Fault(f"node {node}", f"did not come within {meeting.wait_s:g} s; {name}: {_WORDS[state]}", _REMEDY[state])
    return Fault(f"node {node}", f"did not come within {meeting.wait_s:g} s", _REMEDY["unknown"])


def _gather(table: object, meeting: Meeting, what: str, nodes: Iterable[int], wait_s: float, say: Callable[[str], None]) -> list[int]:
    """Wait until `nodes` have written `what`; who has not, when the time is up or one of them is seen to be cut off.

    Of who has found what, node 0 keeps the time: time in which a missing node has no address is not counted.
    """
    started = said = last = time.monotonic()
    waited_s, unplaced = 0.0, False
    silent: dict[int, float] = {}
    missing = list(nodes)
    while True:
        missing = [node for node in missing if not table.check([f"{what}/{node}"])]  # type: ignore[attr-defined]
        now = time.monotonic()
        waited_s, last = waited_s + (0.0 if unplaced else now - last), now
        if not missing or (waited_s > wait_s and not (what == "found" and meeting.node)):
            return missing
        if what == "found" and table.check(["absent"]):  # type: ignore[attr-defined]
            return list(json.loads(table.get("absent")))  # type: ignore[attr-defined]
        if now - said > _SAY_S:
            said = now
            unplaced = not meeting.node and any(meeting.unplaced(node) for node in missing[:4])
            say(f"node {meeting.node} waits for {_listed(missing)} of {meeting.nodes} nodes ({now - started:.0f} s)")
            silent = _still_silent(meeting, missing, silent, now)
            if any(now - since >= CUT_OFF_S for since in silent.values()):
                return [node for node, since in silent.items() if now - since >= CUT_OFF_S]
        time.sleep(0.05 if now - started < _SOON_S else 0.5)


def _still_silent(meeting: Meeting, missing: Sequence[int], before: Mapping[int, float], now: float) -> dict[int, float]:
    """Since when missing peers, a few at a time, have swallowed what node 0 sends them."""
    if meeting.node:
        return {}
    states = {node: reach(name, meeting.port) for node in missing[:4] if (name := meeting.name_of(node))}
    return {node: before.get(node, now) for node, state in states.items() if state == "silent"}


def _listed(nodes: Sequence[int]) -> str:
    shown = ", ".join(map(str, nodes[:8]))
    return f"node{'s' if len(nodes) > 1 else ''} {shown}" + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")


def _found_by_others(table: object, meeting: Meeting) -> list[Fault]:
    faults = []
    for node in range(meeting.nodes):
        if node != meeting.node:
            told = json.loads(table.get(f"found/{node}"))  # type: ignore[attr-defined]
            faults += [Fault(f"node {node}: {fault['place']}", fault["finding"], fault["remedy"]) for fault in told]
    return faults


def _add_up(table: object, meeting: Meeting, gpu: bool) -> list[Fault]:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    backend = "nccl" if gpu else "gloo"
    limit = timedelta(seconds=REDUCE_S)
    try:
        dist.init_process_group(backend, store=table, rank=meeting.node, world_size=meeting.nodes, timeout=limit)  # type: ignore[arg-type]
        try:
            one = torch.ones(1, device=device)
            dist.all_reduce(one)
            # the sum has just come to all of them at once: what their clocks say now can be compared
            clock_N = torch.zeros(meeting.nodes, dtype=torch.float64, device=device)
            clock_N[meeting.node] = time.time()
            total = int(one.item())
            dist.all_reduce(clock_N)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:  # torch's own errors derive from it
        said = str(error).strip().splitlines()[0]
        return [
            Fault("network", f"node {meeting.node}: an all-reduce over {backend} across {meeting.nodes} nodes failed: {said}", _NETWORK)
        ]
    table.set(f"added/{meeting.node}", "")  # type: ignore[attr-defined]
    if total != meeting.nodes:
        return [
            Fault("network", f"an all-reduce of ones across {meeting.nodes} nodes gave {total}", "check the network's offloading and MTU")
        ]
    return skewed(clock_N.tolist())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def skewed(clock_N: Sequence[float]) -> list[Fault]:
    """Nodes whose clock differs from the median by too much, given what each said at about the same time."""
    middle = sorted(clock_N)[len(clock_N) // 2]
    return [
        Fault(
            f"node {node}",
            f"its clock is {abs(said - middle):.0f} s {'ahead' if said > middle else 'behind'}",
            "synchronise the machine's clock: chrony or NTP",
        )
        for node, said in enumerate(clock_N)
        if abs(said - middle) > SKEW_S
    ]
