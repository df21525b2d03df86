"""One node of a training run: its ranks under torchrun, and what came of them. A pod runs it as `python3 -m trainer.node`.

    python3 -m trainer.node ROOT KEY [options of torchrun]

Who its peers are is in torchrun's own environment (PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR,
PET_MASTER_PORT). torchrun ends with 1 whatever happened; this ends so that whoever looks at the pod knows what to do next:

    0     trained
    2     the user's to put right: starting again is of no use
    143   asked to stop, the state is saved (128 + SIGTERM, as of a process that died of it): start again, nothing has failed
    3     failed, and was started again as often as COTRAIN_MAX_RESTARTS allows; or was started once more than that
    1     failed

The word of the rank that failed first goes, as JSON, where Kubernetes looks for a termination message.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.elastic import environment, is_elastic, last_incident, rendezvous
from trainer.errors import NotAgain, UserError
from trainer.observe import word_of, words
from trainer.results import MANIFEST
from trainer.stores import open_store

SHUTDOWN_TIMEOUT_S = 600
"""How long ranks have to save their state after SIGTERM; torchrun's own default is 30."""

STOPPED, GIVEN_UP = 143, NotAgain.exit_code
TERMINATION_LOG = "COTRAIN_TERMINATION_LOG"
_MESSAGE_BYTES = 4096  # Kubernetes keeps no more


def call(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
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


def rank_environment(ranks: int, failures: Path) -> dict[str, str]:
    """What the ranks of this machine find in their environment, wherever they run.

    Args:
        ranks: how many share this machine's cores.
        failures: the folder where they leave a word.
    """
    # a container sees the cores of the whole machine, whatever its share of them is
    cores = float(os.environ.get("COTRAIN_CPUS") or os.cpu_count() or 1)
    threads = str(max(1, int(cores // ranks)))
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
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S)),
    }


def outcome(code: int, asked: bool, left: list[dict[str, Any]], restarts: int, max_restarts: int | None) -> int:
    """The exit code of a node.

    Args:
        code: of torchrun.
        asked: whether this node got SIGTERM.
        left: the words of its ranks, the earliest first.
        restarts: how often the run was started again before.
        max_restarts: how often it may be; None: as often as whoever starts it likes.
    """
    first = left[0] if left else None
    if first and first["type"] == "Stopped":
        return STOPPED
    if code == 0 and not first:
        return 0
    if asked and not first:
        return STOPPED
    if first and first["exit_code"] == 2:
        return 2
    return GIVEN_UP if max_restarts is not None and restarts >= max_restarts else 1


def trained(root: str, key: str) -> bool:
    """Whether the result is there already: then a node that starts late, or again, has nothing to do."""
    return open_store(root).exists(f"results/train/{key}/{MANIFEST}")


def message(left: list[dict[str, Any]]) -> str:
    """The earliest word as JSON of at most 4096 bytes: who, type, message, faults, exit_code, time, the end of its traceback."""
    word = dict(left[0])
    while len(text := json.dumps(word)) > _MESSAGE_BYTES:
        # the end of a traceback says most, the start of a message does
        if len(word["traceback"]) > 1000:
            word["traceback"] = word["traceback"][len(word["traceback"]) // 8 + 1 :]
        elif len(word["message"]) > 250:
            word["message"] = word["message"][: len(word["message"]) * 7 // 8]
        elif word["traceback"]:
            word["traceback"] = ""
        elif word["faults"]:
            word["faults"] = word["faults"][: len(word["faults"]) * 7 // 8]
        else:
            return text[:_MESSAGE_BYTES]
    return text


def main() -> int:
    """Run this node's ranks; the exit codes are above."""
    root, key, *options = sys.argv[1:]
    elastic = is_elastic(options)
    with suppress(UserError):  # of a store: the ranks say it better
        if trained(root, key):  # it was lost, or is late, and the others are done
            return 0
    said = os.environ.get("COTRAIN_MAX_RESTARTS")
    restarts, limit = int(os.environ.get("COTRAIN_RESTARTS") or 0), int(said) if said else None
    log = os.environ.get(TERMINATION_LOG)
    if limit is not None and restarts > limit:
        # a node that is killed as a whole, for want of memory say, can't say that it was not to be started again
        error = NotAgain(f"not started for the {restarts}. time again: cluster.max_restarts is {limit}")
        print(error, file=sys.stderr, flush=True)
        if log:
            Path(log).write_text(message([word_of(f"node {os.environ.get('PET_NODE_RANK') or 0}", error)]))
        return error.exit_code
    processes = os.environ.get("PET_NPROC_PER_NODE", "")
    failures = Path(tempfile.mkdtemp(prefix="cotrain-failures-"))
    ranks = [sys.executable, "-m", "trainer.run", root, key]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *rendezvous(options, os.environ), "--no-python", *ranks]
    try:
        found = rank_environment(int(processes) if processes.isdigit() else 1, failures) | environment(options)
        code, asked = call(command, os.environ | found)
        left = words(failures)
    finally:
        shutil.rmtree(failures, ignore_errors=True)
    if elastic and (code == 0 or trained(root, key)):
        return 0
    if elastic and left:
        left = last_incident(left)
    if left and log:
        Path(log).write_text(message(left))
    return outcome(code, asked, left, restarts, limit)


if __name__ == "__main__":
    # before there are ranks to pass it on to: the first process of a container is not ended by a signal that it doesn't handle
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))
    sys.exit(main())
