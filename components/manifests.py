"""A training request as the Kubernetes objects that train it. Pure: nothing here talks to a cluster.

    render(request, target, "trainjob")   one TrainJob; the pod's fixed part is in the runtime, k8s/base
    render(request, target, "job")        a headless Service and an Indexed Job, for clusters without Kubeflow Trainer

The name is a function of the root and the key alone: whoever wants the same training finds the object there (409), and adopts
it. `cotrain.io/key` says whether it is the same; names can't collide otherwise, but somebody may have made an object of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from components.target import Target, named
from components.template import GIVEN_UP, MASTER_PORT, NODE, PREFLIGHT, STOPPED, USER_FAULT, environment, pod_template
from trainer.errors import Fault, LaunchError
from trainer.spec import digest

Json = dict[str, Any]
TRAINER_API, TRAINER_VERSION = "trainer.kubeflow.org", "v1alpha1"
KEY, RUN, ROLE, TASK, SEED, JOB, ROOT = (f"cotrain.io/{name}" for name in ("key", "run", "role", "task", "seed", "job", "root"))
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
SELECTOR = {"app.kubernetes.io/name": "cotrain", "app.kubernetes.io/component": "training"}
"""Labels of every training pod, and of what makes it."""
MANAGER = "cotrain.io/launcher"
INDEX = "batch.kubernetes.io/job-completion-index"
RESTARTS = "jobset.sigs.k8s.io/restart-attempt"
REPLICATED_JOB = "node"
WITHOUT_ROOM_S = 7 * 86400
"""How long a job may wait for room, on top of its time to run, before the cluster ends it though nobody follows it any more."""
_PATCHABLE = (
    "serviceAccountName",
    "volumes",
    "imagePullSecrets",
    "nodeSelector",
    "affinity",
    "tolerations",
    "terminationGracePeriodSeconds",
)


def job_name(request: Mapping[str, Any], root: str) -> str:
    """The name of a training job: at most 42 characters, a DNS label, the same for the same root and key."""
    middle = re.sub(r"[^a-z0-9]+", "-", request["task"] or request["role"])[:10].strip("-")
    return f"{request['spec']['name'][:18].strip('-')}-{middle}-{digest(root, request['key'])[:12]}"


def labels_of(request: Mapping[str, Any], target: Target) -> dict[str, str]:
    """What a training job and its pods can be found by."""
    found = {**SELECTOR, "app.kubernetes.io/managed-by": "cotrain", JOB: job_name(request, target.root), KEY: request["key"]}
    found |= {ROLE: request["role"], SEED: str(request["seed"])}
    if request["task"]:
        found[TASK] = request["task"]
    if target.run_id:
        found[RUN] = label(target.run_id)
    return found


def label(text: str) -> str:
    """Text as the value of a label: what may not be in one becomes '-'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-._")


def render(request: Mapping[str, Any], target: Target, launcher: str) -> list[Json]:
    """The objects of a training request (see `trainer.requests`), in the order in which they are to be created.

    Raises:
        LaunchError: if the image is not known, or a raw field of the target is none that Kubernetes has.
    """
    if launcher not in ("trainjob", "job"):
        raise LaunchError.at("cluster.launcher", f"'{launcher}' needs no manifests", "write launcher: trainjob or job")
    if target.image:
        named(target.image)
    return [trainjob(request, target)] if launcher == "trainjob" else [service(request, target), job(request, target)]


def trainjob(request: Mapping[str, Any], target: Target) -> Json:
    """A TrainJob of our runtime. What the runtime has, and can't be set for one job, is left to it."""
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    cluster = request["spec"]["cluster"]
    template = pod_template(request, target, labels_of(request, target))
    pod, node, preflight = template["spec"], template["spec"]["containers"][0], template["spec"]["initContainers"][0]
    patch = {name: pod[name] for name in _PATCHABLE if name in pod}
    _mounted_once(pod["volumes"], node["volumeMounts"])
    patch["containers"] = [{"name": NODE, "volumeMounts": node["volumeMounts"]}]
    patch["initContainers"] = [{"name": PREFLIGHT, "env": preflight["env"], "volumeMounts": preflight["volumeMounts"]}]
    jobs = [{"name": REPLICATED_JOB, "template": {"spec": {"template": {"metadata": template["metadata"], "spec": patch}}}}]
    bound = [
        {"name": "COTRAIN_MAX_RESTARTS", "value": str(cluster["max_restarts"])},
        {"name": "COTRAIN_RESTARTS", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{RESTARTS}']"}}},
    ]
    trainer = {name: node[name] for name in ("image", "command", "args") if name in node}
    trainer |= {"numNodes": cluster["nodes"], "numProcPerNode": cluster["gpus_per_node"] or cluster["processes_per_node"]}
    if node["resources"]:
        trainer["resourcesPerNode"] = node["resources"]
    return _typed(
        TrainerV1alpha1TrainJob,
        {
            "apiVersion": f"{TRAINER_API}/{TRAINER_VERSION}",
            "kind": "TrainJob",
            "metadata": _metadata(request, target),
            "spec": {
                "runtimeRef": {"apiGroup": TRAINER_API, "kind": "TrainingRuntime", "name": target.runtime},
                "trainer": trainer | {"env": [*node["env"], *bound]},
                "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}],
                "activeDeadlineSeconds": _deadline_s(cluster),
                **_suspended(cluster),
            },
        },
    )


def _mounted_once(volumes: list[Json], mounts: list[Json]) -> None:
    """A TrainJob takes each volume, and a mount of each, once; a Job would take several mounts."""
    for what, entries in (("volumes", volumes), ("volumeMounts", mounts)):
        names = [entry.get("name") for entry in entries]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            finding = f"{what} have '{twice[0]}' twice, and Kubeflow Trainer takes each name once"
            raise LaunchError.at("COTRAIN_POD", finding, "give the second one a name of its own")


def service(request: Mapping[str, Any], target: Target) -> Json:
    """The headless Service that gives the pods of a Job their names; they need them before they are ready."""
    from kubeflow_trainer_api.models import IoK8sApiCoreV1Service

    metadata = _metadata(request, target)
    metadata["labels"] = {name: value for name, value in metadata["labels"].items() if not name.startswith("kueue.")}
    return _typed(
        IoK8sApiCoreV1Service,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {JOB: metadata["name"]},
                "ports": [{"name": "rendezvous", "port": MASTER_PORT, "protocol": "TCP"}],
            },
        },
    )


def job(request: Mapping[str, Any], target: Target) -> Json:
    """An Indexed Job whose pods find each other as those of a TrainJob do."""
    from kubeflow_trainer_api.models import IoK8sApiBatchV1Job

    if not target.image:
        raise LaunchError.at("COTRAIN_IMAGE", "no image is given, and launcher 'job' has no runtime that names one", "set COTRAIN_IMAGE")
    cluster, name = request["spec"]["cluster"], job_name(request, target.root)
    template = pod_template(request, target, labels_of(request, target))
    peers: list[Json] = [
        {"name": "PET_NNODES", "value": str(cluster["nodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(cluster["gpus_per_node"] or cluster["processes_per_node"])},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
    ]
    for container in (*template["spec"]["initContainers"], *template["spec"]["containers"]):
        container["env"] = [*peers, *container["env"]]
    template["spec"]["subdomain"] = name
    return _typed(
        IoK8sApiBatchV1Job,
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": _metadata(request, target),
            "spec": {
                "completionMode": "Indexed",
                "completions": cluster["nodes"],
                "parallelism": cluster["nodes"],
                "backoffLimitPerIndex": cluster["max_restarts"],
                "maxFailedIndexes": 0,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": failure_rules()},
                "activeDeadlineSeconds": _deadline_s(cluster),
                **_suspended(cluster),
                "template": template,
            },
        },
    )


def failure_rules() -> list[Json]:
    """What tells preemption from failure, and what is not worth another try. The runtime has the same."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [STOPPED]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [USER_FAULT, GIVEN_UP]}},
    ]


def _metadata(request: Mapping[str, Any], target: Target) -> Json:
    cluster = request["spec"]["cluster"]
    labels = labels_of(request, target)
    if cluster["queue"]:
        labels[QUEUE] = cluster["queue"]
    if cluster["priority"]:
        labels[PRIORITY] = cluster["priority"]
    found: Json = {
        "name": job_name(request, target.root),
        "namespace": target.namespace,
        "labels": labels,
        "annotations": {ROOT: target.root},
    }
    if target.owner:
        found["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": target.owner.name, "uid": target.owner.uid}]
    return found


def _deadline_s(cluster: Mapping[str, Any]) -> int:
    """Controllers count from when a job may have pods, with room for them or without: whoever follows it counts better."""
    return max(1, round(cluster["deadline_hours"] * 3600)) + WITHOUT_ROOM_S


def _suspended(cluster: Mapping[str, Any]) -> Json:
    """In a queue a job is held from the first moment: whoever runs the queue lets it go."""
    return {"suspend": True} if cluster["queue"] else {}


def _typed(model: Any, raw: Json) -> Json:
    """`raw`, if it is an object of the model's kind to its last field; the API server drops what it doesn't know."""
    try:
        known = model.from_dict(raw).to_dict()
    except ValidationError as error:
        places = (".".join(map(str, found["loc"])) for found in error.errors())
        faults = [
            Fault(f"{raw['kind']} {place}", found["msg"], "correct COTRAIN_POD")
            for place, found in zip(places, error.errors(), strict=True)
        ]
        raise LaunchError(faults) from None
    if lost := list(_lost(raw, known, "")):
        raise LaunchError(Fault(f"{raw['kind']}{place}", "Kubernetes has no such field", "correct COTRAIN_POD") for place in lost)
    return raw


def _lost(raw: Any, known: Any, place: str) -> Any:
    if isinstance(raw, Mapping):
        for name, value in raw.items():
            if not isinstance(known, Mapping) or name not in known:
                if value not in ({}, [], None):
                    yield f"{place}.{name}"
            else:
                yield from _lost(value, known[name], f"{place}.{name}")
    elif isinstance(raw, list | tuple) and isinstance(known, list):
        for number, (value, kept) in enumerate(zip(raw, known, strict=True)):
            yield from _lost(value, kept, f"{place}[{number}]")


__all__ = ["environment", "job", "job_name", "labels_of", "render", "service", "trainjob"]
