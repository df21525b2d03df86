"""Nodes of a training job, as far as their preflight goes: a process each, forked from one that has imported torch already."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "trainer.preflight", "boto3"])


def _look(environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if ahead_s := float(environment.get("TEST_CLOCK_AHEAD_S", 0)):
        import time

        now = time.time
        time.time = lambda: now() + ahead_s
    from trainer.preflight import main

    code = main()
    sys.stdout.flush()
    os._exit(code)


class Node:
    """A node's preflight, running."""

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self._output, self._log = folder / f"output-{number}", folder / f"termination-{number}"
        environment = {**environment, "COTRAIN_TERMINATION_LOG": str(self._log)}
        self._process = _CONTEXT.Process(target=_look, args=(environment, str(self._output)), daemon=True)
        self._process.start()

    def ended(self) -> tuple[int | None, str]:
        """Its exit code and what it said."""
        self._process.join(120)
        if self._process.is_alive():
            self._process.kill()
        return self._process.exitcode, self._output.read_text()

    @property
    def word(self) -> dict[str, Any]:
        """What it left where Kubernetes looks for a termination message."""
        return json.loads(self._log.read_text())
