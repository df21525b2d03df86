"""The pod of a training job: the same command, environment and security whoever launches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.store_access import CA_FOLDER, STORE, credentials_from
from components.target import Target
from trainer.stores.s3_faults import CREDENTIALS_FROM

Json = dict[str, Any]
NODE, PREFLIGHT = "node", "preflight"
MASTER_PORT = 29500
METRICS_PORT = 9464
USER_ID = 65532
STOPPED, USER_FAULT, GIVEN_UP = 143, 2, 3
"""Exit codes of `trainer.node`, as the failure policies read them."""
_SAVE_MARGIN_S = 30
"""Between torchrun's patience with its ranks and the kubelet's with the pod."""
_WRITABLE = "/tmp"


def command(request: Mapping[str, Any], target: Target) -> tuple[list[str], list[str]]:
    """Command and arguments of a node: torchrun finds its peers in PET_*, so there is no ssh and no host file."""
    return ["python3", "-m", "trainer.node"], [target.root, request["key"], *_options(request["spec"]["cluster"])]


def _options(cluster: Mapping[str, Any]) -> list[str]:
    """Options of torchrun: none where all nodes are needed."""
    if not (cluster.get("min_nodes") or cluster["nodes"]) < cluster["nodes"]:
        return []
    return [
        f"--nnodes={cluster['min_nodes']}:{cluster['nodes']}",
        "--rdzv-backend=c10d",
        # the kubelet fills these in
        "--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)",
        f"--max-restarts={cluster['max_restarts']}",
    ]


def environment(request: Mapping[str, Any], target: Target) -> list[Json]:
    """What both containers find in their environment besides PET_*, as EnvVar objects. Secrets are named, never read."""
    cluster = request["spec"]["cluster"]
    values = {
        # the root file system is read-only
        "HOME": _WRITABLE,
        "TMPDIR": _WRITABLE,
        "XDG_CACHE_HOME": f"{_WRITABLE}/.cache",
        "MPLCONFIGDIR": f"{_WRITABLE}/.cache/matplotlib",
        # a plain Python image knows no name for the user
        "USER": "cotrain",
        "LOGNAME": "cotrain",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COTRAIN_ROOT": target.root,
        "COTRAIN_KEY": request["key"],
        "COTRAIN_GPUS_PER_NODE": str(cluster["gpus_per_node"]),
        "COTRAIN_SHM_BYTES": str(gib(cluster["shm_gib"])),
        "COTRAIN_METRICS_PORT": str(METRICS_PORT),
        "COTRAIN_TERMINATION_LOG": "/dev/termination-log",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(cluster["grace_s"]),
    }
    if cluster.get("cpus_per_node"):
        values["COTRAIN_CPUS"] = f"{cluster['cpus_per_node']:g}"
    if (cluster.get("min_nodes") or cluster["nodes"]) < cluster["nodes"]:
        values["COTRAIN_MIN_NODES"] = str(cluster["min_nodes"])
    if target.root.startswith("s3://"):
        values[CREDENTIALS_FROM] = credentials_from(target.namespace, target.store_secret or STORE)
    if target.run_id:
        values["COTRAIN_RUN_ID"] = target.run_id
    if target.ca_config_map:
        values["AWS_CA_BUNDLE"] = f"{CA_FOLDER}/ca.crt"
    listed: list[Json] = [{"name": name, "value": value} for name, value in values.items()]
    if target.store_secret:
        names = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
        listed += [_from_secret(name, target.store_secret, optional) for name, optional in names.items()]
    # each name once, as a server wants it: what is said last counts
    return list({entry["name"]: dict(entry) for entry in (*listed, *target.env)}.values())


def _from_secret(name: str, secret: str, optional: bool) -> Json:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, **({"optional": True} if optional else {})}}}


def gib(amount: float) -> int:
    """GiB as bytes."""
    return int(amount * 2**30)


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them, in the largest binary unit that divides them."""
    for unit in ("", "Ki", "Mi", "Gi"):
        if size % 1024 or unit == "Gi":
            return f"{size}{unit}"
        size //= 1024
    raise AssertionError


def resources(cluster: Mapping[str, Any], target: Target) -> Json:
    """Requests and limits of a node."""
    found: Json = {"requests": {}, "limits": {}}
    if cluster.get("cpus_per_node"):
        found["requests"]["cpu"] = f"{cluster['cpus_per_node']:g}"
    if cluster.get("memory_gib_per_node"):
        # the same twice, so that what is asked for is there: a pod that gets more than it asked for dies when others want it back
        found["requests"]["memory"] = found["limits"]["memory"] = quantity(gib(cluster["memory_gib_per_node"]))
    if cluster["gpus_per_node"]:
        found["limits"][target.gpu_resource] = str(cluster["gpus_per_node"])
    for part, amounts in (target.resources or {}).items():
        found[part] = found.get(part, {}) | amounts if isinstance(amounts, Mapping) else amounts
    return {part: amounts for part, amounts in found.items() if amounts}


def pod_template(request: Mapping[str, Any], target: Target, labels: Mapping[str, str]) -> Json:
    """The whole pod, as a Job has it. For a TrainJob the runtime holds what is the same for all; see `manifests.trainjob`."""
    cluster = request["spec"]["cluster"]
    run, arguments = command(request, target)
    shared: Json = {
        **({"image": target.image} if target.image else {}),
        "env": environment(request, target),
        "envFrom": [
            {"configMapRef": {"name": STORE, "optional": True}},
            {"secretRef": {"name": STORE, "optional": True}},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(target),
    }
    preflight: Json = {
        "name": PREFLIGHT,
        "command": ["python3", "-m", "trainer.preflight"],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        **shared,
    }
    if cluster["gpus_per_node"]:
        # one is enough to see that it works; the node container then has all of them
        preflight["resources"]["limits"] = preflight["resources"]["limits"] | {target.gpu_resource: "1"}
    node: Json = {
        "name": NODE,
        "command": run,
        "args": arguments,
        "resources": resources(cluster, target),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        **shared,
    }
    tolerations = [{name: value for name, value in entry.items() if value is not None} for entry in cluster["tolerations"]]
    tolerations += [dict(entry) for entry in target.tolerations]
    selector = dict(target.node_selector) | dict(cluster["node_selector"])
    spec: Json = {
        "serviceAccountName": target.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster["grace_s"] + _SAVE_MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [preflight],
        "containers": [node],
        "volumes": _volumes(cluster, target),
    }
    if selector:
        spec["nodeSelector"] = selector
    if tolerations:
        spec["tolerations"] = tolerations
    if target.affinity:
        spec["affinity"] = target.affinity
    if target.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in target.image_pull_secrets]
    return {"metadata": {"labels": dict(labels)}, "spec": spec}


def _mounts(target: Target) -> list[Json]:
    mounts: list[Json] = [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": _WRITABLE}]
    if target.ca_config_map:
        mounts.append({"name": "store-ca", "mountPath": CA_FOLDER, "readOnly": True})
    return mounts + [dict(mount) for mount in target.volume_mounts]


def _volumes(cluster: Mapping[str, Any], target: Target) -> list[Json]:
    volumes: list[Json] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(gib(cluster["shm_gib"]))}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if target.ca_config_map:
        volumes.append({"name": "store-ca", "configMap": {"name": target.ca_config_map}})
    return volumes + [dict(volume) for volume in target.volumes]
