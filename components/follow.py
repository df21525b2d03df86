"""Following a job of a cluster to its end: every watch in a thread, one loop that folds, tells, and knows when to give up."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from components.causes import Cause, as_error, as_markdown, cause_of
from components.cluster import Cluster, Refused
from components.patience import Patience, gave_up
from components.podlogs import Reader, chosen_nodes
from components.situation import FINAL, QUEUE, Situation, fold, tick
from components.watching import LISTED, Json, changes
from trainer.errors import CotrainError, LaunchError, UserError
from trainer.observe import emit

RANKS = "COTRAIN_LOG_RANKS"
"""Whose logs are streamed besides rank 0's: "all", or numbers such as "8,16-23"."""
CONTAINER = "node"
_TICK_S = 1.0
_REPEAT_S = 600.0
"""What is waited for is said again after this."""
_TOLD_S = 15.0
"""And no oftener than this if only its words change."""
_DRAIN_S = 15.0
_SETTLE_S = 2.0
_READ_FIRST = 16
"""Of the pods that failed, how many logs are read."""
_Said = tuple[str, Json | Refused]
"""The resource that was watched, and what came of it."""


@dataclass(frozen=True)
class Followed:
    """What came of a job."""

    situation: Situation
    cause: Cause
    error: CotrainError | None
    gave_up: str | None

    @property
    def markdown(self) -> str:
        """The artifact of the step."""
        return as_markdown(self.cause, self.situation)


@dataclass
class _Logs:
    """The logs of a job's pods: followed, and kept for when the pods are gone."""

    cluster: Cluster
    nodes: list[int]
    ended: dict[str, str] = field(default_factory=dict)
    """The end of the log of every pod that failed."""
    readers: dict[str, tuple[Reader, threading.Thread]] = field(default_factory=dict)
    latest: Situation | None = None
    over: bool = False
    """The job has ended, and so has every container of it, whether we were told of each or not."""

    def update(self, situation: Situation) -> None:
        """Follow pods that have come up, and keep what failed ones said while it can be had."""
        self.latest = situation
        for pod in situation.pods.values():
            if pod.name not in self.readers and pod.index in self.nodes and (pod.running_since_s or pod.ended) and not pod.gone:
                self._follow(pod.name, pod.index or 0)
        failed = [end for pod in situation.pods.values() for end in pod.ended if end.exit_code != 0 and not end.asked and end.container]
        for attempt in {end.attempt for end in failed}:
            # when one of a thousand ranks fails, the others soon follow: the first say what happened
            first = sorted((end for end in failed if end.attempt == attempt), key=lambda end: end.at_s)[:_READ_FIRST]
            for end in first:
                if end.pod not in self.ended:
                    self.ended[end.pod] = self.cluster.log_end(end.pod, end.container)

    def _follow(self, pod: str, index: int) -> None:
        prefix = f"[node {index}] " if index else ""

        def state() -> tuple[int, bool]:
            known = self.latest.pods[pod] if self.latest else None
            if known is None:
                return 0, self.over
            return known.container_restarts, self.over or known.gone or known.phase in ("Succeeded", "Failed")

        reader = Reader(self.cluster.log(pod, CONTAINER), state, lambda line: print(prefix + line, flush=True))
        thread = threading.Thread(target=reader.run, name=f"log of {pod}", daemon=True)
        self.readers[pod] = (reader, thread)
        thread.start()

    def close(self, seconds: float) -> None:
        """Say what is left to say, but don't wait for ever."""
        self.over = True
        until = time.monotonic() + seconds
        for _, thread in self.readers.values():
            thread.join(max(0.0, until - time.monotonic()))
        for reader, _ in self.readers.values():
            reader.stop.set()

    def known(self) -> dict[str, str]:
        """By pod, as much as is known of its log."""
        kept = {pod: "\n".join(reader.kept) for pod, (reader, _) in self.readers.items()}
        return {**kept, **{pod: log for pod, log in self.ended.items() if log}}


def follow(cluster: Cluster, job: Json, patience: Patience) -> Followed:
    """Follow a job until it has ended or patience is over; what happens is said on the way.

    Raises:
        LaunchError: if we may not watch it.
    """
    name, kind = job["metadata"]["name"], job["kind"]
    situation = fold(Situation(name, kind), {"type": "ADDED", "object": job}, time.time())
    events: queue.SimpleQueue[_Said] = queue.SimpleQueue()
    stop = threading.Event()
    unknown = set()
    for resource, selectors, needed in _sources(job):
        source = cluster.objects(resource, **selectors)
        unknown |= {resource} if needed else set()
        # of the job itself we know that it was there: if it is not listed, somebody has deleted it since
        known = {job["metadata"]["uid"]: job} if resource == resource_of(job) else {}
        threading.Thread(target=_pump, args=(resource, source, events, stop, known), name=f"watch {resource}", daemon=True).start()
    required = frozenset(unknown)
    logs = _Logs(cluster, _nodes(job))
    teller = _Teller(name)
    try:
        why: str | None = None
        while situation.state not in FINAL and why is None:
            for resource, said in _next(events):
                if isinstance(said, Refused):
                    if resource in required:  # the rest only makes a cause clearer
                        raise _unseen(cluster, said)
                elif said["type"] == LISTED:
                    unknown.discard(resource)
                else:
                    situation = fold(situation, said, time.time())
            if unknown:
                continue
            situation = tick(situation, time.time())
            logs.update(situation)
            teller.tell(situation)
            why = gave_up(situation, time.time(), patience)
        situation = _settle(situation, events, logs)
    finally:
        stop.set()
        logs.close(_DRAIN_S if situation.state in FINAL else 0.0)
    cause = cause_of(situation, logs.known(), why)
    emit("job_ended", name=name, verdict=cause.verdict, reason=cause.reason, restarts=situation.restarts, **_seconds(situation))
    error = None if cause.verdict == "succeeded" else as_error(cause, situation)
    return Followed(situation, cause, error, why)


def _settle(situation: Situation, events: queue.SimpleQueue[_Said], logs: _Logs) -> Situation:
    """What other watches are about to say of an end: the one that tells of the job may be ahead of those of its pods."""
    until = time.monotonic() + _SETTLE_S
    while situation.state in FINAL and time.monotonic() < until:
        heard = [said for _, said in _next(events) if not isinstance(said, Refused)]
        for said in heard:
            situation = fold(situation, said, time.time()) if said["type"] != LISTED else situation
        logs.update(situation)
        if not heard:
            break
    return situation


def _next(events: queue.SimpleQueue[_Said]) -> Iterator[_Said]:
    """What has been said by now, or the first thing that is within a tick."""
    try:
        yield events.get(timeout=_TICK_S)
        while True:
            yield events.get_nowait()
    except queue.Empty:
        return


def _pump(resource: str, source: Any, events: queue.SimpleQueue[_Said], stop: threading.Event, known: dict[str, Json]) -> None:
    try:
        for event in changes(source, stop, known):
            events.put((resource, event))
    except Refused as refused:
        events.put((resource, refused))


def _unseen(cluster: Cluster, refused: Refused) -> UserError:
    see = f"kubectl auth can-i --list -n {cluster.namespace}"
    return LaunchError.at(
        f"namespace {cluster.namespace}", f"we may not watch the job: {refused}", f"bind the Role of k8s/base; see: {see}"
    )


def _sources(job: Json) -> Iterator[tuple[str, dict[str, str], bool]]:
    """Resource, selectors, and whether nothing goes without."""
    meta, kind = job["metadata"], job["kind"]
    own = {"fieldSelector": f"metadata.name={meta['name']}"}
    yield resource_of(job), own, True
    if kind == "TrainJob":
        yield "jobsets", own, False
    label = "jobset.sigs.k8s.io/jobset-name" if kind == "TrainJob" else "batch.kubernetes.io/job-name"
    yield "pods", {"labelSelector": f"{label}={meta['name']}"}, True
    yield "events", {}, False
    if QUEUE in meta.get("labels", {}):
        yield "workloads", {"labelSelector": f"kueue.x-k8s.io/job-uid={meta['uid']}"}, False


def _nodes(job: Json) -> list[int]:
    spec = job["spec"]
    if job["kind"] == "TrainJob":
        nodes, processes = spec["trainer"].get("numNodes", 1), spec["trainer"].get("numProcPerNode") or 1
    else:
        environment = spec["template"]["spec"]["containers"][0].get("env") or []
        nodes = spec.get("completions") or 1
        processes = next((int(e["value"]) for e in environment if e["name"] == "PET_NPROC_PER_NODE"), 1)
    asked = os.environ.get(RANKS, "0")
    try:
        return chosen_nodes(asked, nodes, int(processes))
    except ValueError:
        raise LaunchError.at(RANKS, f"'{asked}' names no ranks", 'write "all", or numbers such as "0,8-15"') from None


def resource_of(job: Json) -> str:
    """The resource of a job, as in a URL."""
    return f"{job['kind'].lower()}s"


@dataclass
class _Teller:
    """Says how a job stands, when that has changed, and from time to time when it has not."""

    name: str
    last: tuple[str, str] = ("", "")
    words: str = ""
    at: float = 0.0

    def tell(self, situation: Situation) -> None:
        """Emit an event if there is something to say."""
        if situation.job is None or situation.state in FINAL:
            return
        now = (situation.state, situation.blocked.kind if situation.blocked else "")
        quiet_s = time.monotonic() - self.at
        words = situation.waiting_for
        if now == self.last and (words == self.words or quiet_s < _TOLD_S) and not (words and quiet_s > _REPEAT_S):
            return
        self.last, self.words, self.at = now, words, time.monotonic()
        said = {"waiting_for": words} if words else {}
        emit("job_state", state=situation.state, name=self.name, **said, restarts=situation.restarts, **_seconds(situation))


def _seconds(situation: Situation) -> dict[str, float]:
    return {
        "queue_seconds": round(situation.queue_s, 1),
        "start_seconds": round(situation.start_s, 1),
        "run_seconds": round(situation.run_s, 1),
    }
