"""Training jobs on a cluster that is a `kube_server`: what is asked for, who plays the cluster, and what training leaves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kube_server import KubeServer, kubeconfig, stamp
from recorded_streams import recording

from components.cluster import Cluster
from components.target import Owner, Target
from trainer.results import keyed
from trainer.spec import Cluster as ClusterSection

Json = dict[str, Any]
IMAGE = "registry.example/cotrain:1"
_TIME = re.compile(r'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z"')


def request(key: str = "a" * 24, **cluster: Any) -> Json:
    """What is to be trained, by two nodes of one rank each."""
    asked = {"nodes": 2, "processes_per_node": 1, "launcher": "trainjob", **cluster}
    section = ClusterSection.model_validate(asked).model_dump(mode="json")
    return {"key": key, "role": "joint", "task": None, "seed": 0, "spec": {"name": "digits", "cluster": section}, "data": {}}


def target(root: Path | str, owner: str | None = None, **given: Any) -> Target:
    """Where, on behalf of a launching pod if there is one."""
    who = Owner(owner, f"uid-of-{owner}") if owner else None
    return Target(str(root), namespace="ns", image=IMAGE, owner=who, **given)


def connect(kube: KubeServer, folder: Path, monkeypatch: Any, patience_s: float = 30.0) -> Cluster:
    """The real client, as it finds the cluster by KUBECONFIG."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(folder, kube.address)))
    return Cluster.connect("ns", patience_s)


def furnish(kube: KubeServer) -> None:
    """What a namespace has that k8s/base was applied to."""
    kube.put("namespaces", {"metadata": {"name": "ns", "namespace": ""}})
    kube.put("trainingruntimes", {"metadata": {"name": "cotrain"}})
    kube.put("serviceaccounts", {"metadata": {"name": "cotrain-training"}})
    kube.put("localqueues", {"metadata": {"name": "lq"}, "spec": {"clusterQueue": "cq"}})


def launching_pod(kube: KubeServer, name: str, workflow: str = "wf", phase: str = "Running") -> None:
    """A pod of a pipeline step that launches."""
    labels = {"workflows.argoproj.io/workflow": workflow} if workflow else {}
    kube.put("pods", {"metadata": {"name": name, "uid": f"uid-of-{name}", "labels": labels}, "status": {"phase": phase}})


def leave_result(root: Path | str, key: str) -> None:
    """What a training run leaves in the store."""

    def make(folder: Path) -> None:
        (folder / "result.json").write_text("{}")

    keyed(str(root), "train", key, make)


def player(kube: KubeServer, name: str, root: Path | str, key: str, done: list[str] | None = None) -> Callable[[Json], None]:
    """A controller that does to a TrainJob what a cluster did when it was recorded, faster and now."""

    def play(job: Json) -> None:
        found = recording(name)
        seen_s = time.monotonic()
        while not all(any(f"/{part}?" in path and "watch=true" in path for _, path in kube.requests) for part in ("trainjobs", "pods")):
            assert time.monotonic() < seen_s + 60, "nobody watches"
            time.sleep(0.02)
        now_s, called, uid = time.time(), job["metadata"]["name"], job["metadata"]["uid"]
        recorded_uid = found.events[0][1]["object"]["metadata"]["uid"]

        def moved(stamped: re.Match[str]) -> str:
            then_s = datetime.fromisoformat(stamped[1] + "+00:00").timestamp()
            return f'"{stamp(then_s - found.started_s + now_s)}"'

        def here(text: str) -> str:
            text = (
                text.replace("joint-node-0", f"{called}-node-0").replace('"joint"', f'"{called}"').replace("trainjob-joint", "trainjob-x")
            )
            return text.replace(recorded_uid, uid).replace(f"rec-{name}", "ns")

        began = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        for pod, log in found.logs.items():
            lines = [f"{began}.{number:09d}Z {line}\n" for number, line in enumerate(log.splitlines())]
            kube.logs[here(pod)] = "".join(lines)
        last = sum("Complete" in json.dumps(event["object"].get("status", {})) for _, event in found.events)
        if last:
            leave_result(root, key)
        for (_, event), resource in zip(found.events, found.resources, strict=True):
            thing = json.loads(_TIME.sub(moved, here(json.dumps(event["object"]))))
            if resource == "trainjobs":
                there = kube.get(resource, called)
                if there is None:
                    return  # deleted by whoever launched it
                wanted = {**there["spec"], "suspend": thing["spec"].get("suspend", False)}
                if "activeDeadlineSeconds" in thing["spec"]:
                    wanted["activeDeadlineSeconds"] = thing["spec"]["activeDeadlineSeconds"]
                limits = thing["spec"].get("trainer", {}).get("resourcesPerNode")
                if limits:
                    wanted["trainer"] = {**wanted["trainer"], "resourcesPerNode": limits}
                thing = {**there, "spec": wanted, "status": thing.get("status", {})}
            if event["type"] == "DELETED":
                kube.remove(resource, thing["metadata"]["name"], cascade=False)
            else:
                kube.put(resource, thing)
        if done is not None:
            done.append(name)

    return play
