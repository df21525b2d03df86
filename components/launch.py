"""Launching a training run on this machine: torchrun where there are several ranks, a plain process where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainer.errors import CotrainError, Fault, LaunchError, Stopped, UserError
from trainer.lifeline import end_with_parent
from trainer.observe import emit, words
from trainer.requests import write_request
from trainer.results import Result, fetch

SHUTDOWN_TIMEOUT_S = 600
"""How long ranks have to save their state after SIGTERM; torchrun's own default is 30."""


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
    cluster = request["spec"]["cluster"]
    ranks = cluster["nodes"] * (cluster["gpus_per_node"] or cluster["processes_per_node"])
    failures = Path(tempfile.mkdtemp(prefix="cotrain-failures-"))
    command = [sys.executable, "-m", "trainer.run", root, request["key"]]
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        command = [sys.executable, *torchrun, *command]
    try:
        process = subprocess.run(command, env=os.environ | _environment(ranks, failures), check=False, preexec_fn=end_with_parent)
        left = words(failures)
    finally:
        shutil.rmtree(failures, ignore_errors=True)
    result = fetch(root, "train", request["key"])
    if result:
        return Result(result.key, result.folder, reused=False)
    if not left:
        raise CotrainError(f"training ended with exit code {process.returncode} and left no result and no word; see the lines above")
    first = left[0]
    emit("training_failed", who=first["who"], error=first["type"], message=first["message"])
    if first["type"] == "Stopped":
        raise Stopped(first["message"])
    if first["faults"]:
        raise {"LaunchError": LaunchError}.get(first["type"], UserError)(Fault(**fault) for fault in first["faults"])
    raise CotrainError(f"{first['who']} failed first: {first['message']}\n{first['traceback']}")


def _environment(ranks: int, failures: Path) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return {
        "COTRAIN_FAILURES": str(failures),
        "COTRAIN_STARTED": str(time.time()),
        "COTRAIN_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        # importing DeepSpeed would otherwise import the compiler that nothing here uses
        "TORCHDYNAMO_DISABLE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_TIMEOUT_S),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
