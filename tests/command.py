"""The `cotrain` command as a user runs it: a process of its own, in a folder of its own, with what came of it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from trainer.lifeline import VARIABLE

ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("cotrain"))
TIMEOUT_S = 280


@dataclass
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Events of a kind with these values."""
        return [e for e in self.events if e["event"] == kind and all(e.get(name) == value for name, value in fields.items())]

    def trained(self) -> set[str]:
        """What was trained: `joint`, or the task of a baseline; with its seed where that is not 0."""
        return {(e.get("task") or e["role"]) + (f" {e['seed']}" if e["seed"] else "") for e in self.of("phase_started")}

    def reused(self) -> dict[str, bool]:
        """Of the steps that can find their work done, which did."""
        names = ("step", "role", "dataset", "task", "seed")
        return {" ".join(str(e[n]) for n in names if e.get(n)): e["reused"] for e in self.of("step_finished") if "reused" in e}


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of the tests, with this checkout first, and with temporary files where the test can look at them."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "COLUMNS": "160", **(extra or {})}


def start(folder: Path, *arguments: str, extra: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([COMMAND, *arguments], cwd=folder, env=environment(folder, extra), **(pipes | options))


def finish(process: subprocess.Popen[str], code: int | None = 0) -> Ran:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    ran = Ran(process.returncode, out, err)
    assert code is None or ran.code == code, f"exit code {ran.code}, not {code}\n{ran.err}\n{ran.out[-3000:]}"
    return ran


def cotrain(folder: Path, *arguments: str, code: int | None = 0, extra: Mapping[str, str] | None = None) -> Ran:
    """Run the command to its end."""
    return finish(start(folder, *arguments, extra=extra), code)


def write_csv(file: Path, rows: int = 400, seed: int = 0) -> None:
    """A table with two targets, the category `side` and the number `size`, that are easy to learn from `a` and `b`."""
    draw = random.Random(seed)
    lines = ["a,b,side,size"]
    for _ in range(rows):
        a, b = draw.gauss(0, 1), draw.gauss(0, 1)
        lines.append(f"{a:.5f},{b:.5f},{'left' if a + 0.2 * b < 0 else 'right'},{2 * a - b:.5f}")
    file.write_text("\n".join(lines) + "\n")


def document(**changes: Any) -> dict[str, Any]:
    """A document over `table.csv` with one process: small, quick, and good at what it learns."""
    columns = {"a": "number", "b": "number", "side": "category", "size": "number"}
    made: dict[str, Any] = {
        "name": "tiny",
        "data": {"table": {"kind": "csv", "uri": "table.csv", "columns": columns}},
        "models": {"trunk": {"kind": "mlp", "hidden": [8]}},
        "tasks": {
            "side": {"data": "table", "model": "trunk", "input": ["a", "b"], "target": "side"},
            "size": {"data": "table", "model": "trunk", "input": ["a", "b"], "target": "size"},
        },
        "phases": {"joint": {"steps": 30}},
        "train": {"optimizer": {"kind": "adamw", "lr": 0.02}, "batch": 32, "validate_every": 10},
        "compare": {"resamples": 200},
        "cluster": {"processes_per_node": 1},
        "observe": {"every_s": 0.2},
    }
    return made | changes


def write(folder: Path, made: Mapping[str, Any], name: str = "job.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(dict(made), sort_keys=False))
    return name


def until(there: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `there()` gives once it is true; fails if the process ends first."""
    ends = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends:
        found = there()
        if found:
            return found
        assert process.poll() is None, f"it ended first: {process.communicate()}"
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def said(folder: Path, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """Events of all runs in a folder so far, as its steps wrote them."""
    lines = [line for file in sorted(folder.glob("runs/logs/*/*/events.jsonl")) for line in file.read_text().splitlines()]
    return [e for e in map(json.loads, lines) if e["event"] == kind and all(e.get(name) == value for name, value in fields.items())]


def left_behind(folder: Path) -> list[psutil.Process]:
    """Processes that were started, at any distance, by a command of this folder, and still live."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mine = process.environ().get("TMPDIR") == str(folder / "tmp") or process.environ().get(VARIABLE, "").startswith(str(folder))
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def on_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command on a pseudo-terminal: its exit code, and all text that it put on the screen, without control sequences."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    plain = {"TERM": "xterm", "COLUMNS": "", "NO_COLOR": "1"}
    process = start(folder, *arguments, extra=plain, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    seen = b""
    with suppress(OSError):  # the end of the other side
        while block := os.read(ours, 1 << 16):
            seen += block
    os.close(ours)
    return process.wait(TIMEOUT_S), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
