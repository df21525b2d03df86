"""What a cluster lacks for a job, found before the job is created: every fault at once, each with the command that shows it.

What we may not look at is not held against the job: Secrets, nodes and queues are often not ours to read. Then the job says it
itself, a little later (`components.causes`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from components.cluster import Cluster, Refused
from components.manifests import ROOT
from components.situation import QUEUE
from trainer.errors import Fault, one_of

Json = dict[str, Any]
GROWS = "COTRAIN_NODES_ON_DEMAND"
"""Set where nodes are added when pods need them, and this can't be seen from here."""


def faults(cluster: Cluster, manifests: list[Json], launcher: bool = True) -> list[Fault]:
    """Everything that is known to be missing for these objects (see `components.manifests.render`).

    Args:
        cluster: where they are to be created.
        manifests: the objects, the job last.
        launcher: whether it is us who will create them; what others may do can't be seen.
    """
    job = manifests[-1]
    found = list(_rights(cluster, manifests)) if launcher else []
    if found:
        return found  # what may not be created need not be looked at any further
    missing = [*_runtime(cluster, job), *_references(cluster, job), *_queue(cluster, job)]
    if missing and _absent(cluster):
        see = "kubectl get namespaces"
        missing = [Fault(f"namespace {cluster.namespace}", "there is none of that name", f"create it, or name another; see: {see}")]
    return [*_root(job), *missing, *_quota(cluster, job), *_room(cluster, job)]


def _absent(cluster: Cluster) -> bool:
    """Whether it is known that there is no such namespace."""
    try:
        return not cluster.exists("namespaces", cluster.namespace)
    except Refused:
        return False


def _rights(cluster: Cluster, manifests: list[Json]) -> Iterator[Fault]:
    resources = [f"{manifest['kind'].lower()}s" for manifest in manifests]
    wanted = [(verb, resource) for resource in resources for verb in ("create", "get", "delete")]
    wanted += [("watch", resources[-1]), ("patch", resources[-1]), ("list", "pods"), ("watch", "pods"), ("get", "pods/log")]
    for verb, resource in wanted:
        if not cluster.may(verb, resource):
            yield Fault(
                f"namespace {cluster.namespace}",
                f"we may not {verb} {resource}",
                f"bind the Role of k8s/base to our service account; see: kubectl auth can-i {verb} {resource} -n {cluster.namespace}",
            )


def _root(job: Json) -> Iterator[Fault]:
    root = job["metadata"].get("annotations", {}).get(ROOT, "")
    if root and "://" not in root and not root.startswith("/"):
        remedy = "give s3://bucket/prefix, or the path of a volume that every pod mounts (COTRAIN_POD)"
        yield Fault("--root", f"'{root}' is a folder of this machine, and pods have none of that name", remedy)


def _runtime(cluster: Cluster, job: Json) -> Iterator[Fault]:
    if job["kind"] != "TrainJob":
        return
    name = job["spec"]["runtimeRef"]["name"]
    see = f"kubectl get trainingruntimes -n {cluster.namespace}"
    try:
        known = [item["metadata"]["name"] for item in cluster.list("trainingruntimes")[0]]
    except Refused as refused:
        if refused.status == 404:
            yield Fault("cluster", "has no Kubeflow Trainer: it knows no TrainJob", f"install it, or write launcher: job; see: {see}")
        return
    if name not in known:
        yield Fault(
            f"namespace {cluster.namespace}",
            f"has no TrainingRuntime '{name}'",
            f"apply k8s/base there, or set COTRAIN_RUNTIME; {one_of(name, known)}; see: {see}",
        )


def _references(cluster: Cluster, job: Json) -> Iterator[Fault]:
    """Secrets, ConfigMaps, volume claims and the service account that pods can't start without."""
    for resource, name, said in sorted(_named(job)):
        try:
            missing = not cluster.exists(resource, name)
        except Refused:
            continue
        if missing:
            kind = {"secrets": "Secret", "configmaps": "ConfigMap", "serviceaccounts": "ServiceAccount"}.get(
                resource, "PersistentVolumeClaim"
            )
            see = f"kubectl get {resource} {name} -n {cluster.namespace}"
            yield Fault(
                f"namespace {cluster.namespace}", f"has no {kind} '{name}', {said}", f"create it there, or name another; see: {see}"
            )


def _named(thing: Any) -> set[tuple[str, str, str]]:
    """What a pod template anywhere inside refers to by name and can't do without."""
    found: set[tuple[str, str, str]] = set()
    if isinstance(thing, list):
        for part in thing:
            found |= _named(part)
    if not isinstance(thing, dict):
        return found
    for field, resource, key in (
        ("secretKeyRef", "secrets", "name"),
        ("secretRef", "secrets", "name"),
        ("secret", "secrets", "secretName"),
        ("configMapKeyRef", "configmaps", "name"),
        ("configMapRef", "configmaps", "name"),
        ("configMap", "configmaps", "name"),
        ("persistentVolumeClaim", "persistentvolumeclaims", "claimName"),
    ):
        reference = thing.get(field)
        if isinstance(reference, dict) and reference.get(key) and not reference.get("optional"):
            found.add((resource, reference[key], "which its pods take settings from" if "Ref" in field else "which its pods mount"))
    for secret in thing.get("imagePullSecrets") or []:
        found.add(("secrets", secret["name"], "which images are pulled with"))
    if isinstance(thing.get("serviceAccountName"), str):
        found.add(("serviceaccounts", thing["serviceAccountName"], "which its pods run as"))
    for part in thing.values():
        found |= _named(part)
    return found


def _queue(cluster: Cluster, job: Json) -> Iterator[Fault]:
    name = job["metadata"].get("labels", {}).get(QUEUE)
    if not name:
        return
    see = f"kubectl get localqueues -n {cluster.namespace}"
    try:
        queues, _ = cluster.list("localqueues")
    except Refused as refused:
        if refused.status == 404:
            yield Fault("cluster.queue", f"'{name}' is a Kueue queue, and the cluster has no Kueue", f"leave queue out; see: {see}")
        return
    queue = next((queue for queue in queues if queue["metadata"]["name"] == name), None)
    if queue is None:
        known = [queue["metadata"]["name"] for queue in queues]
        yield Fault("cluster.queue", f"namespace {cluster.namespace} has no LocalQueue '{name}'", f"{one_of(name, known)}; see: {see}")
        return
    yield from _cluster_queue(cluster, job, queue["spec"]["clusterQueue"])


def _cluster_queue(cluster: Cluster, job: Json, name: str) -> Iterator[Fault]:
    """Whether the queue could ever admit the job. In a cohort it may borrow, nobody knows how much."""
    try:
        spec = (cluster.get("clusterqueues", name) or {}).get("spec", {})
    except Refused:
        return
    if spec.get("cohort") or spec.get("cohortName"):
        return
    see = f"kubectl describe clusterqueue {name}"
    for resource, amount in _asked(cluster, job).items():
        flavors = [
            cluster.quantity(entry["nominalQuota"])
            for group in spec.get("resourceGroups") or []
            for flavor in group["flavors"]
            for entry in flavor["resources"]
            if entry["name"] == resource
        ]
        whole = amount * _nodes(job)
        if flavors and whole > sum(flavors, Decimal(0)):
            finding = f"asks for {_show(whole)} {resource} in all; ClusterQueue {name} has {_show(sum(flavors, Decimal(0)))}"
            yield Fault("cluster", finding, f"ask for less, or name another queue; see: {see}")


def _quota(cluster: Cluster, job: Json) -> Iterator[Fault]:
    try:
        quotas, _ = cluster.list("resourcequotas")
    except Refused:
        return
    for quota in quotas:
        hard = quota.get("status", {}).get("hard") or quota.get("spec", {}).get("hard") or {}
        if quota.get("spec", {}).get("scopes") or quota.get("spec", {}).get("scopeSelector"):
            continue  # it may not be about these pods
        for resource, amount in [*_asked(cluster, job).items(), ("pods", Decimal(1))]:
            whole = amount * _nodes(job)
            # no limit is below what is requested
            limits = [hard[name] for name in (resource, f"requests.{resource}", f"limits.{resource}") if name in hard]
            least = min(limits, key=cluster.quantity, default=None)
            if least is not None and whole > cluster.quantity(least):
                finding = f"asks for {_show(whole)} {resource} in all; the quota '{quota['metadata']['name']}' of the namespace is {least}"
                see = f"kubectl describe resourcequota -n {cluster.namespace}"
                yield Fault("cluster", finding, f"ask for less, or have it raised; see: {see}")


def _room(cluster: Cluster, job: Json) -> Iterator[Fault]:
    """Whether the nodes that fit could ever hold all pods, if they were empty. Where nodes come when asked for, nobody knows."""
    if os.environ.get(GROWS):
        return
    try:
        nodes, _ = cluster.list("nodes")
        grows = any("karpenter.sh/nodepool" in node["metadata"].get("labels", {}) for node in nodes) or _autoscaled(cluster)
    except Refused:
        return
    if grows or not nodes:
        return
    asked, wanted, selector = _asked(cluster, job), _nodes(job), _selector(job)
    nodes = [node for node in nodes if selector.items() <= node["metadata"].get("labels", {}).items()]
    see = "kubectl get nodes -o custom-columns=NAME:.metadata.name,ALLOCATABLE:.status.allocatable"
    if not nodes:
        pairs = ", ".join(f"{name}={value}" for name, value in selector.items())
        yield Fault("cluster.node_selector", f"no node has {pairs}", "correct it; see: kubectl get nodes --show-labels")
        return

    def has(node: Json, resource: str) -> Decimal:
        return cluster.quantity(node.get("status", {}).get("allocatable", {}).get(resource, 0))

    for resource, amount in asked.items():
        most = max(has(node, resource) for node in nodes)
        if amount > most:
            finding = f"asks for {_show(amount)} {resource} per node; the largest node has {_show(most)}"
            yield Fault("cluster", finding, f"ask for less per node, or set {GROWS}=1 if nodes come on demand; see: {see}")
            return
    places = sum(_fits(node, asked, has) for node in nodes)
    if asked and places < wanted:
        finding = f"asks for {wanted} nodes; the {len(nodes)} nodes of the cluster have room for {places} such pods when empty"
        yield Fault("cluster.nodes", finding, f"ask for fewer, or set {GROWS}=1 if nodes come on demand; see: {see}")


def _fits(node: Json, asked: dict[str, Decimal], has: Callable[[Json, str], Decimal]) -> int:
    if node.get("spec", {}).get("unschedulable"):
        return 0
    return int(min([has(node, resource) // amount for resource, amount in asked.items() if amount] + [Decimal(110)]))


def _autoscaled(cluster: Cluster) -> bool:
    try:
        return cluster.elsewhere("kube-system").get("configmaps", "cluster-autoscaler-status") is not None
    except Refused:
        return False


def _asked(cluster: Cluster, job: Json) -> dict[str, Decimal]:
    """What one pod requests, by resource; a limit without a request is one."""
    spec = job["spec"]
    if job["kind"] == "TrainJob":
        resources = [spec["trainer"].get("resourcesPerNode", {})]
    else:
        resources = [container.get("resources", {}) for container in spec["template"]["spec"]["containers"]]
    total: dict[str, Decimal] = {}
    for part in resources:
        for name, amount in {**part.get("limits", {}), **part.get("requests", {})}.items():
            total[name] = total.get(name, Decimal(0)) + cluster.quantity(amount)
    return total


def _nodes(job: Json) -> int:
    return job["spec"]["trainer"]["numNodes"] if job["kind"] == "TrainJob" else job["spec"]["completions"]


def _selector(job: Json) -> dict[str, str]:
    return next(iter(_selectors(job["spec"])), {})


def _selectors(thing: Any) -> Iterable[dict[str, str]]:
    if isinstance(thing, dict):
        if isinstance(thing.get("nodeSelector"), dict):
            yield thing["nodeSelector"]
        for part in thing.values():
            yield from _selectors(part)
    if isinstance(thing, list):
        for part in thing:
            yield from _selectors(part)


def _show(amount: Decimal) -> str:
    for unit, size in (("Gi", 2**30), ("Mi", 2**20)):
        if amount >= size and amount % size == 0:
            return f"{amount / size:f}{unit}"
    return f"{amount:f}".rstrip("0").rstrip(".") if "." in f"{amount:f}" else f"{amount:f}"
