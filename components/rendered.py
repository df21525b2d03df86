"""What a rendered TrainJob or Job says of its pods: the command, the environment, how many there are, what follows a failure. Pure.

Read from the manifest and nothing else, as the controllers of a cluster would.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from components.manifests import INDEX, RESTARTS, failure_rules
from trainer.errors import LaunchError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """What follows when a node fails."""

    restarts: int
    each: bool
    """A failed node is started again alone, `restarts` times each; else all are, `restarts` times in all."""
    final: frozenset[int]
    """Exit codes after which nothing is started again."""
    uncounted: frozenset[int]
    """Exit codes after which the node is started again, as often as it takes."""

    def counts(self, code: int) -> bool:
        """Whether an exit code is a failure worth another try."""
        return code not in self.final


@dataclass(frozen=True)
class Pods:
    """What every pod of a training job runs."""

    name: str
    namespace: str
    command: tuple[str, ...]
    """As rendered, with references `$(NAME)`."""
    env: tuple[Json, ...]
    """EnvVar objects."""
    nodes: int
    processes: int
    """Ranks of a node."""
    policy: Policy

    @property
    def least(self) -> int:
        """Nodes without which the job can't go on: what `--nnodes=least:most` says, or all."""
        said = [word.removeprefix("--nnodes=") for word in self.command if word.startswith("--nnodes=")]
        return int(said[-1].partition(":")[0]) if said else self.nodes

    def environment(self, number: int, address: str, restarts: int, injected: Mapping[str, str]) -> dict[str, str]:
        """The variables of a node. `injected` stand for what a controller injects: a manifest can't set those.

        Raises:
            LaunchError: for a reference to something that pods of one machine don't have.
        """
        fields = {
            **{f"metadata.{kind}['{INDEX}']": str(number) for kind in ("annotations", "labels")},
            f"metadata.labels['{RESTARTS}']": str(restarts),
            "metadata.name": f"{self.name}-node-0-{number}",
            "metadata.namespace": self.namespace,
            "metadata.uid": f"{self.name}-{number}",
            "spec.nodeName": f"node-{number}",
            "status.podIP": address,
            "status.hostIP": address,
        }
        found = dict(injected)
        for entry in self.env:
            name, source = entry["name"], entry.get("valueFrom")
            if name in injected:
                continue
            if not source:
                found[name] = expand(entry.get("value", ""), found)
                continue
            path = (source.get("fieldRef") or {}).get("fieldPath")
            if path is None:  # a Secret or a ConfigMap, which this machine's environment stands for
                found |= {name: os.environ[name]} if name in os.environ else {}
            elif path in fields:
                found[name] = fields[path]
            else:
                raise LaunchError.at(f"env.{name}", f"refers to {path}, which pods on one machine don't have", "run it on a cluster")
        return found


def pods_of(manifests: Iterable[Json]) -> Pods:
    """What the pods of a training job run, from the objects that `components.manifests.render` makes of it.

    Raises:
        LaunchError: if there is neither a TrainJob nor a Job among them.
    """
    for manifest in manifests:
        spec, meta = manifest["spec"], manifest["metadata"]
        if manifest["kind"] == "TrainJob":
            trainer = spec["trainer"]
            env = trainer.get("env", ())
            said = {entry["name"]: entry.get("value") for entry in env}
            processes, nodes = int(trainer["numProcPerNode"]), trainer["numNodes"]
            policy = _policy(failure_rules(), int(said.get("COTRAIN_MAX_RESTARTS") or 0), False)  # the runtime has these rules
        elif manifest["kind"] == "Job":
            trainer = spec["template"]["spec"]["containers"][0]
            env = trainer.get("env", ())
            said = {entry["name"]: entry.get("value") for entry in env}
            processes, nodes = int(said.get("PET_NPROC_PER_NODE") or 1), spec["completions"]
            policy = _policy(spec["podFailurePolicy"]["rules"], spec["backoffLimitPerIndex"], True)
        else:
            continue
        command = (*trainer.get("command", ()), *trainer.get("args", ()))
        return Pods(meta["name"], meta.get("namespace") or "default", command, tuple(env), nodes, processes, policy)
    raise LaunchError.at("manifests", "have neither a TrainJob nor a Job", "render a training request")


def _policy(rules: Iterable[Json], restarts: int, each: bool) -> Policy:
    codes: dict[str, set[int]] = {}
    for rule in rules:
        codes.setdefault(rule["action"], set()).update((rule.get("onExitCodes") or {}).get("values", ()))
    return Policy(restarts, each, frozenset(codes.get("FailJob", ())), frozenset(codes.get("Ignore", ())))


def expand(text: str, environment: Mapping[str, str]) -> str:
    """References `$(NAME)` resolved as the kubelet does: unknown ones stay as they are, and `$$` is a dollar."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)",
        lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]),
        text,
    )
