"""What a run says while it goes: one JSON line an event, and Prometheus metrics.

Events go to standard output, and to the file that COTRAIN_EVENTS names if it is set.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import CotrainError, GateFailed, Stopped, UserError


def emit(event: str, **fields: Any) -> None:
    """Say that something happened: one JSON line with the time in seconds since the epoch."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str) + "\n"
    target = os.environ.get("COTRAIN_EVENTS")
    if target:
        # one write of one line in append mode: lines of several processes don't mix
        handle = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    if not target or os.environ.get("COTRAIN_EVENTS_ECHO") == "1":
        sys.stdout.write(line)
        sys.stdout.flush()


def word_of(who: str, error: BaseException) -> dict[str, Any]:
    """What went wrong, as JSON values: whose it is, what it says, and a traceback where it is nobody's fault that they know of."""
    expected = isinstance(error, UserError | GateFailed | Stopped)
    return {
        "time": time.time(),
        "who": who,
        "type": type(error).__name__,
        "message": str(error),
        "faults": [vars(fault) for fault in error.faults] if isinstance(error, UserError) else [],
        "exit_code": error.exit_code if isinstance(error, CotrainError) else 1,
        "traceback": "" if expected else "".join(traceback.format_exception(error)),
    }


def leave_word(who: str, error: BaseException) -> None:
    """Leave what went wrong in the folder that COTRAIN_FAILURES names, for whoever started this process to read."""
    folder = os.environ.get("COTRAIN_FAILURES")
    if not folder:
        return
    part = Path(folder) / f"{who}-{os.getpid()}.part"
    part.write_text(json.dumps(word_of(who, error)))
    part.rename(part.with_suffix(".json"))  # whoever reads sees a whole word or none


def words(folder: Path) -> list[dict[str, Any]]:
    """What was left in a folder, the earliest first: what came first is the likeliest cause of the rest."""
    return sorted((json.loads(file.read_text()) for file in folder.glob("*.json")), key=lambda word: word["time"])


@contextmanager
def timed(step: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit `step_started` and `step_finished` with `seconds`, and what the body puts into the dict it gets."""
    started = time.perf_counter()
    emit("step_started", step=step, **fields)
    found: dict[str, Any] = {}
    try:
        yield found
    except BaseException as error:
        emit("step_failed", step=step, seconds=round(time.perf_counter() - started, 3), error=type(error).__name__, **fields)
        raise
    emit("step_finished", step=step, seconds=round(time.perf_counter() - started, 3), **fields, **found)
