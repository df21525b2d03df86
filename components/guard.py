"""What surrounds every step: its events, how it is stopped, and a word for the one who started it when it fails."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trainer.errors import Stopped
from trainer.lifeline import follow
from trainer.observe import leave_word, timed

LOG = "COTRAIN_LOG"
"""Names the file that a step and what it starts write to, instead of the standard output of whoever started it."""


@contextmanager
def step(name: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit events around a step; the body may add fields to the last one (`reused`).

    SIGTERM, or the end of the command, ends the step by an exception, so that it cleans up.
    """
    _write_to(os.environ.get(LOG))
    signal.signal(signal.SIGTERM, _stop)
    follow()
    try:
        with timed(name, **fields) as found:
            yield found
    except Exception as error:
        leave_word(name, error)
        raise


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
