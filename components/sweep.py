"""Deleting training jobs that nobody waits for any more: whose run is finished, was terminated, or is gone.

Kubeflow Pipelines doesn't stop what a step has started: terminating a run kills the launching pod, now and then before it could
clean up, and keeps it. Only jobs with our label are looked at, and one goes only if it is known that nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.cluster import Cluster, Refused
from components.pods import seconds
from components.there import WORKFLOW, going, over, remove

Json = dict[str, Any]
OURS = "app.kubernetes.io/managed-by=cotrain,app.kubernetes.io/component=training"
MIN_AGE_S = 120.0
"""A job younger than this is left alone: its launcher may not have been listed yet."""


@dataclass(frozen=True)
class Orphan:
    """A job that nobody waits for, and how that is known."""

    job: Json
    why: str

    def __str__(self) -> str:
        return f"{self.job['kind'].lower()}/{self.job['metadata']['name']}: {self.why}"


def sweep(cluster: Cluster, dry_run: bool = False, min_age_s: float = MIN_AGE_S, now_s: float | None = None) -> list[Orphan]:
    """Delete the orphans of a namespace, or only find them; which they are."""
    found = list(orphans(cluster, min_age_s, time.time() if now_s is None else now_s))
    return found if dry_run else [orphan for orphan in found if remove(cluster, orphan.job, unchanged=True)]


def orphans(cluster: Cluster, min_age_s: float, now_s: float) -> Iterator[Orphan]:
    """The jobs of a namespace that nobody waits for. One that has ended is kept as long as its run, for whoever reads its logs."""
    for job in ours(cluster):
        age_s = now_s - (seconds(job["metadata"].get("creationTimestamp")) or now_s)
        if age_s < min_age_s or going(job):
            continue
        why = _abandoned(cluster, job)
        if why:
            yield Orphan(job, f"{why}, {'ended' if over(job) else 'still there'} after {age_s / 3600:.1f} h")


def ours(cluster: Cluster) -> Iterator[Json]:
    """The training jobs of a namespace."""
    for kind, api in (("TrainJob", "trainer.kubeflow.org/v1alpha1"), ("Job", "batch/v1")):
        try:
            jobs, _ = cluster.list(f"{kind.lower()}s", labelSelector=OURS)
        except Refused as refused:
            if refused.status == 404:
                continue  # no Kubeflow Trainer
            raise
        yield from ({"apiVersion": api, "kind": kind, **job} for job in jobs)


def _abandoned(cluster: Cluster, job: Json) -> str | None:
    """Why nobody waits for it; None if somebody may. Several runs can wait for one job: all of them must be over."""
    owners = [owner for owner in job["metadata"].get("ownerReferences") or [] if owner["kind"] == "Pod"]
    named = job["metadata"].get("annotations", {}).get(WORKFLOW, "")
    reasons = [_pod_over(cluster, owner) for owner in owners]
    reasons += [_workflow_over(cluster, name) for name in named.split(",") if name]
    if not reasons or not all(reasons):
        return None  # launched by hand, or awaited
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))


def _pod_over(cluster: Cluster, owner: Json) -> str | None:
    """Why a launching pod no longer waits, nor one that takes its place; None if it may."""
    pod = cluster.get("pods", owner["name"])
    if pod is None or pod["metadata"]["uid"] != owner["uid"]:
        return f"launching pod {owner['name']} is gone"
    workflow = pod["metadata"].get("labels", {}).get("workflows.argoproj.io/workflow")
    if workflow:
        return _workflow_over(cluster, workflow)  # a step that failed may be tried again as long as its workflow runs
    phase = pod.get("status", {}).get("phase")
    return f"launching pod {owner['name']} has {phase.lower()}" if phase in ("Succeeded", "Failed") else None


def _workflow_over(cluster: Cluster, name: str) -> str | None:
    """Why an Argo workflow waits for nothing any more; None if it may, or we may not look."""
    try:
        workflow = cluster.get("workflows", name)
    except Refused:
        return None
    if workflow is None:
        return f"workflow {name} is gone"
    phase, spec = workflow.get("status", {}).get("phase"), workflow.get("spec", {})
    if phase in ("Succeeded", "Failed", "Error"):
        return f"workflow {name} has {phase.lower()}"
    # this is how Kubeflow Pipelines and Argo terminate one
    if spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown"):
        return f"workflow {name} was terminated"
    return None
