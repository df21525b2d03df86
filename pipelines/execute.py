"""`cotrain run`: start the pipeline on this machine, show what it says, and say what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from pipelines.show import subject
from trainer.errors import CotrainError, Fault, GateFailed, Stopped, UserError
from trainer.flow import keep_spec
from trainer.lifeline import Lifeline
from trainer.observe import words
from trainer.spec import JointSpec

Json = dict[str, Any]
_POLL_S = 0.1
_GRACE_S = 900
"""How long training has to save its state; longer than torchrun gives its ranks."""


@dataclass
class Finished:
    """What a run came to."""

    folder: Path
    verdict_key: str = ""
    report_key: str = ""
    outcome: Json = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    worked: list[str] = field(default_factory=list)


def execute(spec: JointSpec, root: str, folder: Path, show: Callable[[Json], None]) -> Finished:
    """Run the pipeline and feed its events to `show(event)`. When this returns or raises, no process of it is left.

    Raises:
        UserError: with the faults that the steps found.
        Stopped: after Ctrl-C or SIGTERM, once everything that ran has saved its state and ended.
        CotrainError: anything else, naming the log.
    """
    uri = keep_spec(spec, root)
    folder.mkdir(parents=True)
    events, failures, log = folder / "events.jsonl", folder / "failures", folder / "pipeline.log"
    failures.mkdir()
    events.touch()
    lifeline = Lifeline()
    environment = os.environ | lifeline.environment
    environment |= {"COTRAIN_EVENTS": str(events.resolve()), "COTRAIN_FAILURES": str(failures.resolve()), "COTRAIN_LOG": str(log.resolve())}
    command = [sys.executable, "-m", "pipelines.local", uri, root, str(folder / "kfp")]
    finished = Finished(folder)
    with log.open("a") as output, _Asked() as asked:
        # a session of its own: Ctrl-C reaches this process alone, which then stops the others in order
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            for event in _tail(events, process, lifeline, asked):
                show(event)
                _note(finished, event)
        except BaseException:
            # what happens is told no more: whoever watched is gone
            asked.times += 1
            for _ in _tail(events, process, lifeline, asked):
                pass
            raise
    if asked.times:
        kept = "saved" if asked.times == 1 else "not saved, but for the last checkpoint"
        raise Stopped(f"stopped: the state of what ran is {kept}; the same command goes on from there (results are kept in {root})")
    if process.returncode:
        _explain(words(failures), log)
    return finished


@dataclass
class _Asked:
    """Counts Ctrl-C and SIGTERM while it is entered."""

    times: int = 0

    def __enter__(self) -> _Asked:
        self._before = {number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _on(self, number: int, frame: FrameType | None) -> None:
        self.times += 1

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _tail(events: Path, process: subprocess.Popen[bytes], lifeline: Lifeline, asked: _Asked) -> Iterator[Json]:
    """Events until the last process has ended; on the first ask they are stopped, on the second killed."""
    told, deadline, rest = 0, float("inf"), ""
    with events.open() as lines:
        while True:
            gone = process.poll() is not None and not lifeline.holders()
            rest += lines.read()
            *whole, rest = rest.split("\n")
            yield from (json.loads(line) for line in whole)
            if gone:
                lifeline.let_go()
                return
            if deadline == float("inf") and (asked.times or process.poll() is not None):
                lifeline.let_go()
                deadline = time.monotonic() + _GRACE_S
            forced = asked.times > 1 or time.monotonic() > deadline
            if asked.times > told:
                told = asked.times
                yield {"time": round(time.time(), 3), "event": "stopping", "forced": forced}
            for holder in lifeline.holders() if forced else ():
                with suppress(psutil.NoSuchProcess):
                    holder.kill()
            time.sleep(_POLL_S)


def _note(finished: Finished, event: Json) -> None:
    if event["event"] != "step_finished":
        return
    step = event["step"]
    if "reused" in event:
        (finished.reused if event["reused"] else finished.worked).append(subject(event))
    if step == "compare":
        finished.verdict_key = event["key"]
    if step == "publish":
        finished.outcome = {name: event[name] for name in ("published", "version", "promoted", "reasons")}
    if step == "report":
        finished.report_key = event["key"]


def _explain(left: list[Json], log: Path) -> None:
    where = f"the whole log is {log}"
    if not left:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise CotrainError(f"the pipeline failed without a word; it said last:\n{last}\n{where}")
    faults = [Fault(**fault) for word in left for fault in word["faults"]]
    if faults:
        raise UserError(dict.fromkeys(faults))
    first = left[0]
    if first["type"] in ("Stopped", "GateFailed"):
        raise {"Stopped": Stopped, "GateFailed": GateFailed}[first["type"]](first["message"])
    # an error of our own says all that is known, such as the traceback of a rank; where it was raised adds nothing
    said = first["message"] if first["type"] == "CotrainError" else first["traceback"].rstrip()
    raise CotrainError(f"{first['who']} failed: {said}\n{where}")
