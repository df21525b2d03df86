"""A training run as a job of a cluster: launched once, adopted by whoever comes second, followed to its end, never left behind.

    found? ─ check ─ create, or adopt (409) ─ follow: watches ─▶ situation ─▶ log ─┬─▶ result
                                                                                  ├─▶ cause, as an exception
                                              SIGTERM, or patience is over ───────┴─▶ delete, unless others wait for it too

The name of the job is a function of the root and the key, so it can exist once only. Its owner references say which launching pods
wait for it: the cluster deletes it when none of them exists any more, and a launcher that is stopped deletes it if no other lives.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from components import manifests as rendering
from components.checks import faults
from components.cluster import Cluster, Refused
from components.follow import Followed, follow, resource_of
from components.patience import Patience
from components.target import Target, launcher_of
from components.watching import Interrupted
from trainer.errors import CotrainError, Fault, LaunchError, Stopped
from trainer.observe import emit
from trainer.requests import write_request
from trainer.results import Result, fetch

Json = dict[str, Any]
LAUNCHER, WORKFLOW = "cotrain.io/launched-by", "cotrain.io/workflow"
"""Annotations of a job: the process that made it, and the Argo workflows that wait for it, with commas between."""
_OVER = ("Complete", "Failed")
_POLL_S = 1.0
_GONE_S = 120.0
"""How much longer than its grace period a pod may take to go."""
_PARTING_S = 20.0
"""How long a launcher that is stopped waits to see its pods go: it has not long to live itself."""


def train(
    cluster: Cluster,
    root: str,
    request: Json,
    target: Target,
    patience: Patience | None = None,
    told: Callable[[Followed], None] | None = None,
) -> Result:
    """The result of a training request: found, or trained now by a job of the cluster. `told` is given what came of the job.

    Raises:
        LaunchError: what the cluster lacks or refuses, or what of its limits ended the job.
        UserError: what a rank found to be the user's fault.
        Stopped: if it was asked to stop, or the job was deleted; ranks save their state.
        CotrainError: any other failure, with the traceback of the rank that failed first.
    """
    found = fetch(root, "train", request["key"])
    if found:
        return found
    spec = request["spec"]["cluster"]
    write_request(root, request)
    objects = rendering.render(request, target, launcher_of(spec))
    missing = faults(cluster, objects)
    if missing:
        raise LaunchError(missing)
    with _stoppable():
        try:
            job = submit(cluster, objects, spec["grace_s"] + _GONE_S, lambda: fetch(root, "train", request["key"]))
            if isinstance(job, Result):
                return job
            ended = follow(cluster, job, patience or Patience(run_s=spec["deadline_hours"] * 3600))
        except BaseException:  # a stop, or anything that keeps us from watching: what nobody watches is not to run on
            with suppress(Refused, Interrupted):
                withdraw(cluster, objects[-1])
            raise
    if ended.gave_up:
        withdraw(cluster, objects[-1])
    if told:
        told(ended)
    if ended.error:
        raise ended.error
    result = fetch(root, "train", request["key"])
    if result is None:
        place = f"{job['kind']} {cluster.namespace}/{job['metadata']['name']}"
        raise CotrainError(f"{place} finished, and left no result at {root}: do its pods reach the same store?")
    return Result(result.key, result.folder, reused=False)


def submit(cluster: Cluster, objects: list[Json], gone_s: float, trained: Callable[[], Result | None]) -> Json | Result:
    """The job as the server has it: created now, or adopted. One that has ended without a result makes way for a new one.

    `trained` looks for the result: the job of somebody else may have ended a moment ago. Then that result is returned.

    Raises:
        LaunchError: if the server refuses it, or something else has its name.
    """
    job = _signed(cluster, objects[-1])
    resource, name = resource_of(job), job["metadata"]["name"]
    place = f"{job['kind']} {cluster.namespace}/{name}"
    deadline = time.monotonic() + gone_s
    while time.monotonic() < deadline:
        there = cluster.get(resource, name)
        if there is None or over(there):
            result = trained()
            if result is not None:
                return result
        if there is None:
            if _cleared(cluster, job):
                created = _create(cluster, objects[:-1], job)
                if created is not None:
                    emit("job_created", kind=job["kind"], name=name, namespace=cluster.namespace)
                    return created
        elif not same(there, job):
            theirs = there["metadata"].get("labels", {}).get(rendering.KEY)
            raise LaunchError.at(
                place,
                f"exists and trains something else (key {theirs})" if theirs else "exists and is not ours",
                f"delete or rename it; see: kubectl describe {job['kind'].lower()} {name} -n {cluster.namespace}",
            )
        elif over(there):
            if not going(there):
                remove(cluster, there)
        elif not going(there):
            adopted = _adopt(cluster, there, job)
            if adopted is not None:
                emit("job_adopted", kind=job["kind"], name=name, namespace=cluster.namespace)
                return adopted
        time.sleep(_POLL_S)
    see = f"kubectl get {job['kind'].lower()},pods -n {cluster.namespace} -l {rendering.JOB}={name}"
    raise LaunchError.at(place, f"an earlier one is still there after {gone_s:.0f} s", f"delete what is left of it; see: {see}")


def withdraw(cluster: Cluster, job: Json) -> None:
    """Stop waiting for a job: delete it, unless another launcher that lives waits for it too."""
    resource, name = resource_of(job), job["metadata"]["name"]
    ours = {owner["uid"] for owner in job["metadata"].get("ownerReferences") or []}
    while True:
        there = cluster.get(resource, name)
        if there is None or not same(there, job):
            return
        owners = there["metadata"].get("ownerReferences") or []
        if not owners and there["metadata"].get("annotations", {}).get(LAUNCHER) != _us():
            emit("job_left", kind=job["kind"], name=name, to=[there["metadata"].get("annotations", {}).get(LAUNCHER)])
            return  # somebody who is no pod has launched it
        others = [owner for owner in owners if owner["uid"] not in ours and _lives(cluster, owner)]
        if not others:
            break
        version = there["metadata"]["resourceVersion"]
        try:
            cluster.patch(resource, name, {"metadata": {"ownerReferences": others, "resourceVersion": version}})
        except Refused as refused:
            if refused.status != 409:
                raise
            continue  # it has changed: look again
        emit("job_left", kind=job["kind"], name=name, to=[owner["name"] for owner in others])
        return
    remove(cluster, there)
    deadline = time.monotonic() + _PARTING_S
    while time.monotonic() < deadline and not _cleared(cluster, job):
        time.sleep(0.5)
    emit("job_deleted", kind=job["kind"], name=name, pods_gone=_cleared(cluster, job))


def remove(cluster: Cluster, job: Json, unchanged: bool = False) -> bool:
    """Delete a job and all that it owns; whether it was there. With `unchanged` only if nobody has touched it since.

    A Job goes in the foreground: its name stays taken until the last pod is gone, so nothing else trains with that key meanwhile.
    A TrainJob goes in the background: while one is on its way out, its controller would make it a new JobSet.
    """
    kind, meta = job["kind"], job["metadata"]
    version = meta["resourceVersion"] if unchanged else None
    return cluster.delete(resource_of(job), meta["name"], meta.get("uid"), version, foreground=kind == "Job")


def over(job: Json) -> bool:
    """Whether a job has ended."""
    return any(c["type"] in _OVER and c["status"] == "True" for c in job.get("status", {}).get("conditions") or [])


def going(job: Json) -> bool:
    """Whether a job is on its way out."""
    return "deletionTimestamp" in job["metadata"]


def same(there: Json, job: Json) -> bool:
    """Whether what is there trains what we want: then it is ours to adopt."""

    def key(thing: Json) -> Any:
        return thing["metadata"].get("labels", {}).get(rendering.KEY)

    return key(job) is not None and key(there) == key(job)


def _signed(cluster: Cluster, job: Json) -> Json:
    """The job with a note of who launches it."""
    notes = {**job["metadata"].get("annotations", {}), LAUNCHER: _us()}
    workflow = _workflow(cluster, job["metadata"].get("ownerReferences") or [])
    return {**job, "metadata": {**job["metadata"], "annotations": notes | ({WORKFLOW: workflow} if workflow else {})}}


def _us() -> str:
    """This process, as the note on a job names who made it."""
    return f"{socket.gethostname()}/{os.getpid()}"


def _create(cluster: Cluster, others: list[Json], job: Json) -> Json | None:
    """The job, and before it what it needs; None if another one got the name meanwhile."""
    try:
        for other in others:
            _create_or_keep(cluster, other)
        created = cluster.create(resource_of(job), job)
    except Refused as refused:
        if refused.status == 409:
            return None
        raise LaunchError(_refusal(refused, job, cluster.namespace)) from None
    _belong(cluster, others, created)
    return created


def _workflow(cluster: Cluster, owners: list[Json]) -> str | None:
    """The Argo workflow that the launching pod is a step of."""
    for owner in owners:
        try:
            pod = cluster.get("pods", owner["name"])
        except Refused:
            continue
        if pod and "workflows.argoproj.io/workflow" in pod["metadata"].get("labels", {}):
            return pod["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    return None


def _adopt(cluster: Cluster, there: Json, job: Json) -> Json | None:
    """Wait for a job that somebody launched: from now on it lives as long as one of us does. None if it changed meanwhile."""
    meta, ours = there["metadata"], job["metadata"].get("ownerReferences") or []
    owners = meta.get("ownerReferences") or []
    # a job without an owner was launched by somebody who is no pod: nobody's end is to delete it
    owners = owners + [owner for owner in ours if owner["uid"] not in {known["uid"] for known in owners}] if owners else []
    workflows = {*_listed(meta.get("annotations", {}).get(WORKFLOW)), *_listed(job["metadata"]["annotations"].get(WORKFLOW))}
    change: Mapping[str, Any] = {
        "resourceVersion": meta["resourceVersion"],
        **({"annotations": {WORKFLOW: ",".join(sorted(workflows))}} if workflows else {}),
        **({"ownerReferences": owners} if owners else {}),
    }
    try:
        return cluster.patch(resource_of(job), meta["name"], {"metadata": dict(change)})
    except Refused as refused:
        if refused.status in (404, 409):
            return None
        raise LaunchError(_refusal(refused, job, cluster.namespace)) from None


def _listed(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _create_or_keep(cluster: Cluster, thing: Json) -> None:
    try:
        cluster.create(resource_of(thing), thing)
    except Refused as refused:
        if refused.status != 409:
            raise


def _belong(cluster: Cluster, others: list[Json], job: Json) -> None:
    """Let what was created beside a job go with it."""
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    for other in others:
        cluster.patch(resource_of(other), other["metadata"]["name"], {"metadata": {"ownerReferences": [owner]}})


def _cleared(cluster: Cluster, job: Json) -> bool:
    """Whether nothing is left of an earlier job of that name that could still train or be in the way."""
    name = job["metadata"]["name"]
    if job["kind"] == "TrainJob":
        try:
            if cluster.get("jobsets", name) is not None:
                return False
        except Refused:
            pass  # not ours to see
    selector = f"jobset.sigs.k8s.io/jobset-name={name}" if job["kind"] == "TrainJob" else f"batch.kubernetes.io/job-name={name}"
    pods, _ = cluster.list("pods", labelSelector=selector)
    return not pods


def _lives(cluster: Cluster, owner: Json) -> bool:
    """Whether a launching pod still runs. Of an owner that is no pod we only know that it owns."""
    if owner["kind"] != "Pod":
        return True
    try:
        pod = cluster.get("pods", owner["name"])
    except Refused:
        return True
    if pod is None or pod["metadata"]["uid"] != owner["uid"] or "deletionTimestamp" in pod["metadata"]:
        return False
    return pod.get("status", {}).get("phase") in ("Pending", "Running", "Unknown")


def _refusal(refused: Refused, job: Json, namespace: str) -> Fault:
    """What the server's no means."""
    place, message = f"{job['kind']} {namespace}/{job['metadata']['name']}", refused.message.strip()
    resource = resource_of(job)
    denied = message.partition("denied the request: ")[2] or message
    if refused.status == 404:
        return Fault(
            place, f"the server knows no {job['kind']}: {message}", f"install what has it; see: kubectl api-resources | grep {resource}"
        )
    if "runtime" in denied and "not found" in denied:
        return Fault(place, denied, f"apply k8s/base, or set COTRAIN_RUNTIME; see: kubectl get trainingruntimes -n {namespace}")
    if "exceeded quota" in denied:
        return Fault(place, denied, f"ask for less, or wait; see: kubectl describe resourcequota -n {namespace}")
    if "unknown field" in denied:
        return Fault(place, denied, f"the server is of another version than we know; see: kubectl explain {resource} --recursive")
    if "reserved env" in denied:
        return Fault(place, denied, "leave those names out of COTRAIN_POD: torchrun's PET_* are set for every pod")
    if refused.status in (401, 403) and denied is message and "cannot" in message:
        return Fault(place, denied, f"bind the Role of k8s/base; see: kubectl auth can-i create {resource} -n {namespace}")
    return Fault(place, f"{refused.reason}: {denied}", f"put right what it names; see: kubectl get events -n {namespace}")


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends what is inside by an exception, where nobody has seen to that already."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: cleaning up is not to be interrupted
        raise Stopped("asked to stop; its ranks save their state")

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
