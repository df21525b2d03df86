"""What surrounds every step: its events, how it is stopped, and a word for the one who started it when it fails."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from trainer.errors import CotrainError, Stopped, UserError
from trainer.lifeline import follow
from trainer.observe import leave_word, timed
from trainer.stores import open_store

LOG = "COTRAIN_LOG"
"""Names the file that a step and what it starts write to, instead of the standard output of whoever started it."""
RUN = "COTRAIN_RUN_ID"
"""The id of the pipeline run that a step belongs to. Set on a cluster, where steps share no disk."""
_SHOWN_CHARACTERS = 20_000


@contextmanager
def step(name: str, root: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit events around a step; the body may add fields to the last one (`reused`).

    SIGTERM, or the end of the command, ends the step by an exception, so that it cleans up. What goes wrong in a run on a
    cluster is left below `root` for its last step to tell.
    """
    _write_to(os.environ.get(LOG))
    signal.signal(signal.SIGTERM, _stop)
    follow()
    try:
        with timed(name, **fields) as found:
            yield found
    except Exception as error:
        leave_word(name, error)
        about = " ".join(str(fields[field]) for field in ("dataset", "role", "task") if fields.get(field))
        _leave_cause(root, f"{name} {about}".strip(), error)
        raise


def run_id() -> str:
    """The id of the pipeline run that this process is a step of; empty on one machine."""
    return os.environ.get(RUN, "")


def causes_page(root: str, state: str) -> str:
    """Why the run that this process is a step of failed, as Markdown; what failed first comes first."""
    _write_to(os.environ.get(LOG))
    follow()
    if not run_id():
        return "Nothing is kept of single steps on one machine: the log of the command has it all.\n" if state != "SUCCEEDED" else _WELL
    store = open_store(root)
    found = sorted((json.loads(store.read(key)) for key in store.list(f"causes/{run_id()}")), key=lambda cause: cause["time"])
    if state == "SUCCEEDED":
        return _WELL  # what failed was retried with success
    if not found:
        return "No step said why. Look at the pods of the step that failed: it may never have started, or was killed.\n"
    return "\n".join(f"## {cause['step']}\n\n{cause['said']}\n" for cause in found)


_WELL = "Nothing failed.\n"


def _leave_cause(root: str, name: str, error: Exception) -> None:
    if not run_id():
        return
    import time
    import traceback

    text = str(error) if isinstance(error, CotrainError) else "".join(traceback.format_exception(error))
    text = text[-_SHOWN_CHARACTERS:]
    fenced = "```text\n" + text.replace("```", "'''") + "\n```"
    faults = [vars(fault) for fault in error.faults] if isinstance(error, UserError) else []
    cause = {"time": time.time(), "step": name, "said": getattr(error, "markdown", None) or fenced, "text": text, "faults": faults}
    with suppress(Exception):  # why the step failed matters more than that this could not be said
        key = f"causes/{run_id()}/{name.replace(' ', '-')}-{os.environ.get('COTRAIN_POD_NAME', os.getpid())}.json"
        open_store(root).write(key, json.dumps(cause).encode())


def _write_to(log: str | None) -> None:
    """Point standard output and error at a file: a pipe breaks when the one who reads it ends first."""
    if not log:
        return
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    os.close(target)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: cleaning up is not to be interrupted
    raise Stopped("asked to stop")
