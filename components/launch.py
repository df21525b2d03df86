"""Launching a training run: on a cluster, or on this machine.

Here it is torchrun where there are several ranks, a plain process where there is one; `components/cluster.py` does the rest.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from components.store_access import ADDRESS, CA_FOLDER, CREDENTIALS
from components.target import Target, launcher_of
from trainer.errors import CotrainError, Fault, LaunchError, Stopped, UserError
from trainer.node import call, rank_environment
from trainer.observe import emit, words
from trainer.requests import write_request
from trainer.results import Result, fetch

if TYPE_CHECKING:
    from kfp.dsl import TaskConfig

    from components.follow import Followed
    from trainer.spec import JointSpec

NAMESPACES = "COTRAIN_NAMESPACES"
"""Set to 1: each of several local nodes gets a network namespace and an address of its own."""


@dataclass(frozen=True)
class Launched:
    """A training run that is done, and how it went."""

    result: Result
    followed: Followed | None = None
    """The job that trained it, if a cluster did so just now."""

    @property
    def work(self) -> dict[str, float]:
        """What it cost, whoever trained it and when: hours from the first start to the last step, the same times its ranks, and of a
        job that was followed the restarts and the hours in queues.
        """
        said = self.result.json("result.json")
        hours = said["seconds"]["total"] / 3600
        found = {"hours": hours, f"{'GPU' if said['device'] == 'cuda' else 'rank'} hours": hours * said["ranks"]}
        if self.followed:
            found |= {"restarts": float(self.followed.situation.restarts), "hours in queues": self.followed.situation.queue_s / 3600}
        return {name: round(value, 6) for name, value in found.items()}

    @property
    def page(self) -> str:
        """How it went, as Markdown."""
        if self.followed:
            return self.followed.markdown
        return "It was trained before: nothing was launched.\n" if self.result.reused else "It was trained by processes of this step.\n"


def launch(root: str, request: dict[str, Any], image: str = "", pods: TaskConfig | None = None) -> Launched:
    """The result of a training request, found or trained now where its document says, and how that went; see `train`."""
    jobs: list[Followed] = []
    if launcher_of(request["spec"]["cluster"]) == "local":
        return Launched(train_here(root, request))
    from components.cluster import train_there

    target = Target.from_environment(root, **(asked(pods) | ({"image": image} if image else {})))
    result = train_there(root, request, target, jobs.append)
    return Launched(result, jobs[-1] if jobs else None)


def look(root: str, items: Sequence[Mapping[str, Any]]) -> None:
    """See to it that training could be launched, before anything else is done; where nothing has changed nothing will be.

    Args:
        root: where results are kept.
        items: what `trainer.flow.start` makes of a document.

    Raises:
        LaunchError: what the cluster lacks or refuses, all of it.
    """
    from trainer.check import load_spec
    from trainer.outcomes import outcome

    spec = load_spec(items[0]["spec"], sources=False)
    if launcher_of(spec.cluster.model_dump()) == "local" or outcome(root, items[0]["run"]):
        return
    from components.cluster import lacking

    if found := lacking(probe(spec), Target.from_environment(root)):
        raise LaunchError(found)


def probe(spec: JointSpec) -> dict[str, Any]:
    """A training request that stands for all that a document will make, as far as a cluster is concerned; nobody trains it."""
    return {"key": "0" * 24, "role": "joint", "task": None, "seed": spec.seed, "spec": spec.to_json(), "data": {}}


def train(root: str, request: dict[str, Any], image: str = "", pods: TaskConfig | None = None) -> Result:
    """The result of a training request: found, or trained now where its document says.

    Args:
        root: where results are kept.
        request: what to train (see `trainer.requests`).
        image: image of the pods that train, if there are any; empty: what COTRAIN_IMAGE says.
        pods: what a pipeline asks for on behalf of those pods.
    """
    return launch(root, request, image, pods).result


def asked(pods: TaskConfig | None) -> dict[str, Any]:
    """Fields of a target that a pipeline's task asks for.

    What a step finds itself and the store by is not for other pods: those have a runtime of their own for that.
    """
    if pods is None:
        return {}
    mounts = [mount for mount in pods.volume_mounts or () if mount["mountPath"] != CA_FOLDER]
    without = {mount["name"] for mount in pods.volume_mounts or ()} - {mount["name"] for mount in mounts}
    own = (*CREDENTIALS, *ADDRESS)
    fields: dict[str, Any] = {
        "node_selector": pods.node_selector,
        "affinity": pods.affinity,
        "resources": pods.resources,
        "tolerations": tuple(pods.tolerations or ()),
        "volumes": tuple(volume for volume in pods.volumes or () if volume["name"] not in without),
        "volume_mounts": tuple(mounts),
        "env": tuple(entry for entry in pods.env or () if not entry["name"].startswith("COTRAIN_") and entry["name"] not in own),
    }
    return {name: value for name, value in fields.items() if value}


def train_here(root: str, request: dict[str, Any]) -> Result:
    """The result of a training request: found, or trained now by processes of this machine.

    One run trains at a time on a machine: two would share its cores and spoil each other's timing.

    Raises:
        Stopped: if it was asked to stop; its state is saved.
        UserError: what a rank found to be the user's fault.
        CotrainError: any other failure, with the traceback of the rank that failed first.
    """
    found = fetch(root, "train", request["key"])
    if found:
        return found
    write_request(root, request)
    with FileLock(Path(tempfile.gettempdir()) / f"cotrain-training-{os.getuid()}.lock"):
        found = fetch(root, "train", request["key"])
        return found or _train(root, request)


def _train(root: str, request: dict[str, Any]) -> Result:
    failures = Path(tempfile.mkdtemp(prefix="cotrain-failures-"))
    try:
        code, stopped = (_on_nodes if request["spec"]["cluster"]["nodes"] > 1 else _on_one_node)(root, request, failures)
        left = words(failures)
    finally:
        shutil.rmtree(failures, ignore_errors=True)
    result = fetch(root, "train", request["key"])
    if result:
        return Result(result.key, result.folder, reused=False)
    said = [word for word in left if word["type"] == "Stopped"]
    if stopped or (left and left[0] in said):
        raise Stopped(said[0]["message"] if said else "stopped before the first step was done")
    if not left:
        hint = ": killed, most often because memory ran out" if code == -signal.SIGKILL else ""
        raise CotrainError(f"training ended with exit code {code} and left neither a result nor a word{hint}")
    first = left[0]
    emit("training_failed", who=first["who"], error=first["type"], message=first["message"])
    if first["faults"]:
        raise UserError(Fault(**fault) for fault in first["faults"])
    raise CotrainError(f"{first['who']} failed first: {first['message']}\n{first['traceback']}".rstrip())


def _on_one_node(root: str, request: dict[str, Any], failures: Path) -> tuple[int, bool]:
    """The exit code, and whether there was a SIGTERM."""
    cluster = request["spec"]["cluster"]
    ranks = cluster["gpus_per_node"] or cluster["processes_per_node"]
    command = [sys.executable, "-m", "trainer.run", root, request["key"]]
    if ranks > 1:
        # by its loopback address: in a container the machine's name need not resolve
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", "--no-python"]
        command = [sys.executable, *torchrun, *command]
    return call(command, os.environ | rank_environment(ranks, failures))


def _on_nodes(root: str, request: dict[str, Any], failures: Path) -> tuple[int, bool]:
    """As `_on_one_node`, for the TrainJob that a cluster would be given: its nodes are processes of this machine."""
    from components.manifests import render
    from components.netns import Network
    from components.nodes import Nodes
    from components.rendered import pods_of

    def again() -> None:  # what counts is how the last attempt ends
        for word in failures.iterdir():
            word.unlink()

    pods = pods_of(render(request, Target(root), "trainjob"))
    with Network(pods.nodes) if os.environ.get(NAMESPACES) == "1" else nullcontext() as network:
        ended = Nodes(pods, network=network, left=failures, again=again).run()
    return ended.code, ended.stopped
