"""What a training job on a cluster is doing, folded from what the API server says of it. Pure: no clock, no network.

    events of TrainJob, JobSet, Job, Pods, Workload, Events ── fold ──▶ Situation ── blocked, waiting_for ──▶ the log
                                                                             └───── components.causes ──▶ verdict

No object says what a person wants to know: a TrainJob has no condition for running, none while an image can't be pulled,
none while no node has room. So the state is read from all of them, for a TrainJob and for a plain Indexed Job alike.
Times are seconds since the epoch; what a job waits for in a queue is counted apart from what it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from components.pods import Json, Pod, pod_of, seconds

State = Literal["queued", "starting", "running", "restarting", "succeeded", "failed", "deleted"]
"""`queued` is time that costs nobody anything: suspended, held by Kueue or a quota, or no node has room."""
FINAL = ("succeeded", "failed", "deleted")

QUEUE = "kueue.x-k8s.io/queue-name"
IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")
CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError")


@dataclass(frozen=True)
class Blocked:
    """What keeps a job from running, and since when."""

    kind: Literal["suspended", "kueue", "quota", "unschedulable", "image", "config", "mount", "refused", "creating"]
    subject: str
    """The pod, queue or job that it is said of."""
    reason: str
    message: str
    since_s: float


@dataclass(frozen=True)
class Situation:
    """Everything known of one job. `name` and `kind` say which, before anything was seen of it."""

    name: str
    kind: Literal["TrainJob", "Job"]
    state: State = "queued"
    blocked: Blocked | None = None
    job: Json | None = None
    jobset: Json | None = None
    workload: Json | None = None
    deleted: bool = False
    pods: Mapping[str, Pod] = field(default_factory=dict)
    warnings: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    """Message by kind, name and reason of what the warning is about."""
    queue_s: float = 0.0
    start_s: float = 0.0
    run_s: float = 0.0
    since_s: float | None = None
    suspensions: int = 0
    """How often it was suspended while it ran."""

    @property
    def nodes(self) -> int:
        """Pods that a complete set has."""
        spec = (self.job or {}).get("spec", {})
        return (spec.get("trainer", {}).get("numNodes") if self.kind == "TrainJob" else spec.get("completions")) or 1

    @property
    def restarts(self) -> int:
        """Times that the whole set of pods was started anew, as far as it is known."""
        attempts = max((pod.attempt for pod in self.pods.values()), default=0)
        if self.kind == "TrainJob":
            return max(attempts, int((self.jobset or {}).get("status", {}).get("restarts", 0)))
        return max(0, attempts - self.suspensions)

    @property
    def live(self) -> list[Pod]:
        """The pods that are there and not on their way out, by index."""
        pods = [pod for pod in self.pods.values() if not pod.gone and not pod.deleting]
        return sorted(pods, key=lambda pod: (pod.index or 0, pod.name))

    @property
    def waiting_for(self) -> str:
        """What it waits for, in words; nothing if it runs or is over."""
        return "" if self.blocked is None else _words(self.blocked)


def fold(situation: Situation, event: Json, now_s: float) -> Situation:
    """What is known after one watch event, `{"type": "ADDED" | "MODIFIED" | "DELETED", "object": {...}}`. `tick` draws the conclusions."""
    thing, gone = event["object"], event["type"] == "DELETED"
    kind, name = thing.get("kind"), thing.get("metadata", {}).get("name", "")
    if kind == situation.kind and name == situation.name:
        situation = replace(situation, job=thing, deleted=gone)
    elif kind == "JobSet" and name == situation.name:
        # one that is gone may leave a younger one behind, and never said more than its TrainJob
        situation = replace(situation, jobset=situation.jobset if gone else thing)
    elif kind == "Workload":
        situation = replace(situation, workload=None if gone else thing)
    elif kind == "Pod":
        before = situation.pods.get(name)
        pod = pod_of(thing, gone, before, now_s)
        if situation.kind == "Job":  # a plain Job doesn't count: a pod comes after those that had its index
            others = sum(other.index == pod.index for other in situation.pods.values())
            attempt = before.attempt if before else others
            pod = replace(pod, attempt=attempt, ended=tuple(replace(end, attempt=attempt) for end in pod.ended))
        situation = replace(situation, pods={**situation.pods, name: pod})
    elif kind == "Event":
        situation = _told(situation, thing)
    return situation


def tick(situation: Situation, now_s: float) -> Situation:
    """The situation by what is known now; the time that has passed is counted to what it was spent on.

    The first time everything that is there should be known: from it follows what the time since the job was created was.
    """
    since_s = situation.since_s
    if situation.job is None or situation.state in FINAL:
        return situation
    if since_s is None:
        since_s = min(seconds(situation.job["metadata"].get("creationTimestamp")) or now_s, now_s)
    blocked = _blocked(situation, now_s)
    state = _state(situation, blocked)
    now_s = max(now_s, since_s)
    # whoever comes late, or is told late, still learns from the pods when they began to run
    began = [pod.running_since_s for pod in situation.live if pod.running_since_s is not None]
    turned = min(max(max(began), since_s), now_s) if state == "running" and situation.state != "running" and began else now_s
    spent = _spend(situation, turned - since_s)
    if state == "running":
        spent = replace(spent, run_s=spent.run_s + now_s - turned)
    suspended = blocked is not None and blocked.kind in ("suspended", "kueue") and situation.state in ("running", "restarting")
    return replace(
        spent, state=state, blocked=blocked, since_s=now_s, suspensions=spent.suspensions + (suspended and situation.blocked is None)
    )


def _spend(situation: Situation, seconds: float) -> Situation:
    if situation.state == "queued":
        return replace(situation, queue_s=situation.queue_s + seconds)
    if situation.state == "starting":
        return replace(situation, start_s=situation.start_s + seconds)
    if situation.state in ("running", "restarting"):
        return replace(situation, run_s=situation.run_s + seconds)
    return situation


def _state(situation: Situation, blocked: Blocked | None) -> State:
    if situation.state in FINAL:
        return situation.state
    for thing in (situation.job, situation.jobset):
        for condition in (thing or {}).get("status", {}).get("conditions") or []:
            if condition["status"] == "True" and condition["type"] in ("Complete", "Completed", "Failed"):
                return "failed" if condition["type"] == "Failed" else "succeeded"
    if situation.deleted:
        return "deleted"
    if blocked is not None and blocked.kind in ("suspended", "kueue", "quota", "unschedulable"):
        return "queued"
    if blocked is None and situation.live:
        return "running"
    return "restarting" if any(pod.running_since_s and (pod.gone or pod.deleting) for pod in situation.pods.values()) else "starting"


def _blocked(situation: Situation, now_s: float) -> Blocked | None:
    """The first thing that keeps it from running; None while a complete set of pods works, and when it is over."""
    if situation.job is None or _state(situation, None) in FINAL:
        return None
    found = next(iter(_obstacles(situation)), None)
    if found is None:
        return None
    kind, subject, reason, message = found
    before = situation.blocked
    since_s = before.since_s if before and before.kind == kind else now_s
    return Blocked(kind, subject, reason, message, since_s)


def _obstacles(situation: Situation) -> list[tuple[Any, str, str, str]]:
    held = _held(situation)
    if held:
        return [held]
    found: list[tuple[Any, str, str, str]] = []
    live = situation.live
    found += [("unschedulable", pod.name, "Unschedulable", pod.unschedulable) for pod in live if pod.unschedulable]
    for pod in live:
        if pod.waiting and pod.waiting[0] in IMAGE:
            found.append(("image", pod.name, *pod.waiting))
        if pod.waiting and pod.waiting[0] in CONFIG:
            found.append(("config", pod.name, *pod.waiting))
    for pod in live:
        mount = situation.warnings.get(("Pod", pod.name, "FailedMount"))
        if mount and pod.phase == "Pending" and not _ignorable(mount):
            found.append(("mount", pod.name, "FailedMount", mount))
    up = [pod for pod in live if pod.phase in ("Running", "Succeeded")]
    if len(live) < situation.nodes:
        found += [
            ("quota" if "exceeded quota" in message else "refused", name, reason, message)
            for (kind, name, reason), message in situation.warnings.items()
            if reason in ("FailedCreate", "TrainJobResourcesCreationFailed") and not _ignorable(message)
        ]
    if len(up) < situation.nodes and not any(pod.ended for pod in live):
        found.append(("creating", situation.name, "", f"{len(up)} of {situation.nodes} pods run"))
    return found


def _held(situation: Situation) -> tuple[Any, str, str, str] | None:
    """What holds it back before it may have pods: Kueue, or whoever suspended it."""
    job = situation.job or {}
    queue = job.get("metadata", {}).get("labels", {}).get(QUEUE)
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or []}
    told = conditions.get("Suspended", {}).get("status")
    wanted = bool(job.get("spec", {}).get("suspend"))
    if not (told == "True" or (wanted and told is None)):
        return None
    if not queue:
        return "suspended", situation.name, "Suspended", "suspended: somebody has to resume it"
    workload = {c["type"]: c for c in (situation.workload or {}).get("status", {}).get("conditions") or []}
    if not workload:
        return "kueue", queue, "Pending", "not looked at yet"
    for kind, when in (("Evicted", "True"), ("QuotaReserved", "False"), ("Admitted", "False")):
        condition = workload.get(kind)
        if condition and condition["status"] == when:
            return "kueue", queue, condition.get("reason", ""), condition.get("message", "")
    return "kueue", queue, "Admitted", "admitted, about to start"


def _ignorable(message: str) -> bool:
    """Warnings of a cluster that is catching up with itself; they are gone at the next try."""
    return "failed to sync" in message or "timed out waiting for the condition" in message or 'JobSet.jobset.x-k8s.io "' in message


def _told(situation: Situation, event: Json) -> Situation:
    created_s = seconds((situation.job or {}).get("metadata", {}).get("creationTimestamp"))
    told_s = seconds(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp"))
    if created_s is not None and told_s is not None and told_s < created_s - 1:
        return situation  # of an earlier job of that name
    about, reason, message = event.get("involvedObject", {}), event.get("reason", ""), event.get("message", "")
    name = about.get("name", "")
    if reason == "SuccessfulDelete":
        deleted = situation.pods.get(message.removeprefix("Deleted pod: "))
        if deleted:
            known = {**situation.pods, deleted.name: replace(deleted, asked_by_controller=True)}
            return replace(situation, pods=known)
    if event.get("type") != "Warning" or not (
        name == situation.name or name.startswith(f"{situation.name}-") or about.get("kind") == "Workload"
    ):
        return situation
    return replace(situation, warnings={**situation.warnings, (about.get("kind", ""), name, reason): message})


def _words(blocked: Blocked) -> str:
    message = " ".join(blocked.message.split())
    if blocked.kind == "kueue":
        return f"queued by Kueue in {blocked.subject}: {message}"
    if blocked.kind == "unschedulable":
        return f"no room for {blocked.subject}: {message}"
    if blocked.kind == "quota":
        return f"held by a quota of the namespace: {message}"
    if blocked.kind in ("suspended", "creating"):
        return message
    return f"{blocked.subject}: {blocked.reason}: {message}"
