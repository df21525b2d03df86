"""The line that ties processes to the command they work for: when it lets go, or ends in whatever way, they stop.

The command holds a lock on a file. Whoever works for it waits for that lock in a thread and asks itself to stop
(SIGTERM) as soon as it gets it. The kernel gives the lock up however the command ends, a process that only starts
after that finds no file, and nothing depends on who is whose parent: shells and launchers stand in between.
"""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
import threading
from contextlib import suppress
from typing import Any

VARIABLE = "COTRAIN_LIFELINE"


class Lifeline:
    """Held by the command as long as its processes are to work."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="cotrain-lifeline-")  # noqa: SIM115 (closed by `let_go`)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes need in their environment."""
        return {VARIABLE: self._file.name}

    def let_go(self) -> None:
        """Ask every process to stop, those that are only starting too."""
        self._file.close()

    def holders(self) -> list[Any]:
        """The processes (psutil) that live and have this line in their environment, and so have all they started."""
        import psutil

        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(VARIABLE) == self._file.name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def follow() -> None:
    """SIGTERM to this process when the command it works for lets go; nothing where there is no such command."""
    path = os.environ.get(VARIABLE)
    if path:
        threading.Thread(target=_wait, args=(path,), name="lifeline", daemon=True).start()


def _wait(path: str) -> None:
    with suppress(OSError), open(path) as file:  # no such file: it is over already
        fcntl.flock(file, fcntl.LOCK_SH)
    ident = threading.main_thread().ident
    if ident is not None:  # to that thread, so that what it waits for is interrupted
        signal.pthread_kill(ident, signal.SIGTERM)
