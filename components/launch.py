"""Launching a training run on this machine: torchrun where there are several ranks, a plain process where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock

from trainer.errors import CotrainError, Fault, Stopped, UserError
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
    command = [sys.executable, "-m", "trainer.run", root, request["key"]]
    if ranks > 1:
        # by its loopback address: in a container the machine's name need not resolve
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", "--no-python"]
        command = [sys.executable, *torchrun, *command]
    failures = Path(tempfile.mkdtemp(prefix="cotrain-failures-"))
    try:
        code, stopped = _call(command, os.environ | _environment(ranks, failures))
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


def _call(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """The exit code of a command that SIGTERM is passed on to, once, and whether there was one."""
    process: subprocess.Popen[bytes] | None = None
    asked = passed = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        pass_on()

    def pass_on() -> None:
        nonlocal passed
        if asked and process and not passed:
            passed = True
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        process = subprocess.Popen(command, env=environment)
        pass_on()
        return process.wait(), asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(ranks: int, failures: Path) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    return {
        "COTRAIN_FAILURES": str(failures),
        "COTRAIN_STARTED": str(time.time()),
        "COTRAIN_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        # threads that wait give up their core: spinning makes a step 10 times as long where others need the cores too
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # importing DeepSpeed would otherwise import the compiler that nothing here uses
        "TORCHDYNAMO_DISABLE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_TIMEOUT_S),
    }
