"""`cotrain run`: start the pipeline on this machine, show what it says, and say what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import CotrainError, Fault, GateFailed, Stopped, UserError
from trainer.flow import keep_spec
from trainer.observe import words
from trainer.spec import JointSpec

Json = dict[str, Any]
_POLL_S = 0.1
_GRACE_S = 900


@dataclass
class Finished:
    """What a run came to."""

    folder: Path
    verdict_key: str | None = None
    report_key: str | None = None
    outcome: Json = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    worked: list[str] = field(default_factory=list)


def execute(spec: JointSpec, root: str, folder: Path, show: Any) -> Finished:
    """Run the pipeline and feed its events to `show(event)`.

    Raises:
        UserError: with the faults that the steps found.
        Stopped: after Ctrl-C or SIGTERM, once everything that ran has saved its state and ended.
        CotrainError: anything else, naming the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events, failures, log = folder / "events.jsonl", folder / "failures", folder / "pipeline.log"
    failures.mkdir()
    events.touch()
    uri = keep_spec(spec, root)
    environment = os.environ | {
        "COTRAIN_EVENTS": str(events.resolve()),
        "COTRAIN_FAILURES": str(failures.resolve()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    finished = Finished(folder)
    command = [sys.executable, "-m", "pipelines.local", uri, root, str(folder / "kfp")]
    asked = _Asked()
    with log.open("w") as output, asked:
        # a session of its own: Ctrl-C reaches this process alone, which then stops the others in order
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        for event in _tail(events, process, asked):
            show(event)
            _note(finished, event)
    if asked.times:
        raise Stopped(f"stopped; what was done is kept below {root}, and the same command goes on from there")
    if process.returncode:
        _explain(words(failures), log)
    return finished


class _Asked:
    """Counts Ctrl-C and SIGTERM while it is entered."""

    times = 0

    def __enter__(self) -> _Asked:
        self._before = {number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _on(self, number: int, frame: Any) -> None:
        self.times += 1

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _tail(events: Path, process: subprocess.Popen[bytes], asked: _Asked) -> Iterator[Json]:
    stopping = 0
    deadline = float("inf")
    family: list[Any] = []
    with events.open() as lines:
        rest = ""
        while True:
            ended = process.poll() is not None and not any(p.is_running() and p.status() != "zombie" for p in family)
            rest += lines.read()
            *whole, rest = rest.split("\n")
            yield from (json.loads(line) for line in whole)
            if ended:
                return
            if asked.times > stopping or time.monotonic() > deadline:
                stopping = asked.times
                family = _family(process.pid) or family
                force = stopping > 1 or time.monotonic() > deadline
                yield {"time": time.time(), "event": "stopping", "forced": force}
                for p in family if force else family[:1]:
                    if p.is_running():
                        p.send_signal(signal.SIGKILL if force else signal.SIGTERM)
                deadline = time.monotonic() + (5 if force else _GRACE_S)
            time.sleep(_POLL_S)


def _family(pid: int) -> list[Any]:
    import psutil

    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _note(finished: Finished, event: Json) -> None:
    if event["event"] != "step_finished":
        return
    step = event["step"]
    if "reused" in event:
        who = " ".join(str(event[k]) for k in ("role", "dataset", "task", "seed") if event.get(k) is not None)
        (finished.reused if event["reused"] else finished.worked).append(f"{step} {who}".strip())
    if step == "compare":
        finished.verdict_key = event["key"]
    if step == "publish":
        finished.outcome = {name: event[name] for name in ("published", "version", "promoted", "reasons")}
    if step == "report":
        finished.report_key = event["key"]


def _explain(left: list[Json], log: Path) -> None:
    if not left:
        raise CotrainError(f"the pipeline failed without a word; its log is {log}\n{_last_lines(log)}")
    first = left[0]
    if first["faults"]:
        raise UserError(dict.fromkeys(Fault(**fault) for word in left for fault in word["faults"]))
    if first["type"] == "Stopped":
        raise Stopped(first["message"])
    if first["type"] == "GateFailed":
        raise GateFailed(first["message"])
    raise CotrainError(f"{first['who']} failed: {first['message']}\n{first['traceback']}the whole log is {log}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
