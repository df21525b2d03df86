"""What is known of one pod of a job: whether it runs, what it waits for, and how its containers ended. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"


@dataclass(frozen=True)
class Ended:
    """How a container ended. `index` is that of its node: the completion index of the pod."""

    pod: str
    index: int | None
    attempt: int
    container: str
    exit_code: int
    reason: str
    message: str
    """What it left in its termination message, or the last lines of its log."""
    at_s: float
    disruption: str | None
    """Why the cluster took the pod away (reason of DisruptionTarget), if it did."""
    asked: bool
    """Its pod was being deleted before it ended: it was told to end, and is not what went wrong first."""
    preparing: bool
    """It is an init container."""


@dataclass(frozen=True)
class Pod:
    """A pod, alive or gone. Times are seconds since the epoch."""

    name: str
    index: int | None
    attempt: int
    """How often the set of pods had been started anew before this one."""
    phase: str
    node: str
    unschedulable: str
    """What the scheduler says, if no node has room."""
    waiting: tuple[str, str] | None
    """Reason and message of the first container that can't start yet."""
    running_since_s: float | None
    deleting: bool
    disruption: str | None
    ended: tuple[Ended, ...]
    gone: bool
    container_restarts: int = 0
    asked_by_controller: bool = False
    """The job controller deleted it: another pod had failed, or the job was suspended."""


def pod_of(thing: Json, gone: bool, before: Pod | None, now_s: float) -> Pod:
    """What an object of the API says, and what was known of the pod before it."""
    meta, status = thing["metadata"], thing.get("status", {})
    labels = {**meta.get("annotations", {}), **meta.get("labels", {})}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    states = [c.get("state", {}) for group in ("initContainerStatuses", "containerStatuses") for c in status.get(group) or []]
    waiting = next((s["waiting"] for s in states if "waiting" in s and s["waiting"].get("reason") != "PodInitializing"), None)
    mains = [c.get("state", {}) for c in status.get("containerStatuses") or []]
    began = [seconds((s.get("running") or s.get("terminated") or {}).get("startedAt")) for s in mains]
    return Pod(
        name=meta["name"],
        index=int(labels[INDEX]) if INDEX in labels else None,
        attempt=int(labels.get(ATTEMPT, 0)),
        phase=status.get("phase", "Pending"),
        node=thing.get("spec", {}).get("nodeName", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        waiting=(waiting.get("reason", ""), waiting.get("message", "")) if waiting else None,
        running_since_s=max((at_s for at_s in began if at_s is not None), default=None),
        deleting="deletionTimestamp" in meta,
        disruption=_disruption(status, conditions),
        ended=tuple(_ends(thing, before, now_s)),
        gone=gone,
        container_restarts=sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or []),
        asked_by_controller=before.asked_by_controller if before else False,
    )


def seconds(stamp: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else None


def _disruption(status: Json, conditions: Json) -> str | None:
    told = conditions.get("DisruptionTarget", {})
    if told.get("status") == "True":
        return told.get("reason") or "DisruptionTarget"
    return "Evicted" if status.get("reason") == "Evicted" else None  # by its node, for want of memory or disk


def _ends(thing: Json, before: Pod | None, now_s: float) -> Iterator[Ended]:
    meta, status = thing["metadata"], thing.get("status", {})
    labels = {**meta.get("annotations", {}), **meta.get("labels", {})}
    index = int(labels[INDEX]) if INDEX in labels else None
    attempt = int(labels.get(ATTEMPT, 0))
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    disruption = _disruption(status, conditions)
    # what the cluster takes away has ended for the others when it is taken, however long it then takes to save its state
    taken_s = seconds(conditions.get("DisruptionTarget", {}).get("lastTransitionTime")) if disruption else None
    known = {end.container: end for end in before.ended} if before else {}
    deleting = before.deleting if before else "deletionTimestamp" in meta
    found = False
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            name = container["name"]
            done = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
            if done:
                found = True
                yield Ended(
                    pod=meta["name"],
                    index=index,
                    attempt=attempt,
                    container=name,
                    exit_code=done.get("exitCode", 0),
                    reason=done.get("reason", ""),
                    message=done.get("message", ""),
                    at_s=min(filter(None, (seconds(done.get("finishedAt")) or now_s, taken_s))),
                    disruption=disruption,
                    asked=known[name].asked if name in known else deleting,
                    preparing=group == "initContainerStatuses",
                )
    if status.get("phase") == "Failed" and not found:
        # refused or evicted by its node before any container ran: the pod speaks for them
        at_s = known[""].at_s if "" in known else now_s
        reason, message = status.get("reason", "Failed"), status.get("message", "")
        yield Ended(meta["name"], index, attempt, "", -1, reason, message, at_s, disruption, asked=False, preparing=False)
