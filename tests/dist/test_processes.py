"""Training as it is launched: processes that are killed, asked to stop, or fail."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_cases import Garden, Ranks
from training_inputs import TESTS, ask, document, same_bits

from components.launch import train_here
from trainer.errors import CotrainError, Stopped

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]  # the process groups start in whichever test comes first


@pytest.fixture(autouse=True)
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ranks find the modules of these tests, take one thread each, and don't wait for other trainings of this machine. Gives the events file."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("COTRAIN_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "events.jsonl"


def events(file: Path, kind: str) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def ranks_of(key: str) -> dict[int, psutil.Process]:
    """The processes that train a request, by rank."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "trainer.run" in command and key in command and "torch.distributed.run" not in command:
            try:
                found[int(process.environ().get("RANK", 0))] = process
            except psutil.Error:
                continue
    return found


def command_of(process: psutil.Process) -> list[str]:
    """Nothing of one that has ended."""
    with suppress(psutil.Error):
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    return []


def processes_of(key: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if key in (p.info["cmdline"] or [])]


class Meanwhile(threading.Thread):
    """Does something to the ranks of a run, from beside it, once the later phase has a checkpoint."""

    def __init__(self, key: str, file: Path, end: Callable[[dict[int, psutil.Process]], None]) -> None:
        super().__init__(daemon=True)
        self.key, self.file, self.end = key, file, end
        self.start()

    def run(self) -> None:
        while not events(self.file, "phase_started"):
            time.sleep(0.01)
        ranks = ranks_of(self.key)  # to look through all processes may take longer than the training that is left later on
        while not [e for e in events(self.file, "checkpoint") if "/001-" in e["key"] and e["step"] >= 20]:
            time.sleep(0.01)
        self.end(ranks)


def cut(request: dict[str, Any], root: Path, file: Path, end: Callable[[dict[int, psutil.Process]], None], error: type[Exception]) -> None:
    """Train until something is done to the ranks, and see that nothing is left of it but its checkpoints."""
    Meanwhile(request["key"], file, end)
    with pytest.raises(CotrainError) as found:
        train_here(str(root), request)
    assert type(found.value) is error
    assert psutil.wait_procs(processes_of(request["key"]), timeout=60)[1] == []
    assert not (root / "results" / "train" / request["key"]).exists()


def one_killed(ranks: dict[int, psutil.Process]) -> None:
    ranks[1].kill()


def all_killed(ranks: dict[int, psutil.Process]) -> None:
    launcher = ranks[0].parent()
    for process in [launcher, *ranks.values()]:
        process.kill()


def one_asked(ranks: dict[int, psutil.Process]) -> None:
    ranks[1].send_signal(signal.SIGTERM)


def launcher_asked(ranks: dict[int, psutil.Process]) -> None:
    ranks[0].parent().send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("label", "end", "error"),
    [
        ("cut-1-fp32", one_killed, CotrainError),
        ("cut-3-fp32", all_killed, CotrainError),
        ("cut-2-bf16", one_asked, Stopped),
        ("cut-0-fp32", launcher_asked, Stopped),
    ],
)
def test_a_run_cut_short_ends_bit_for_bit_as_if_it_had_not_been(
    garden: Garden, two: Ranks, launcher: Path, label: str, end: Any, error: type[Exception]
) -> None:
    """Two phases of different tasks, dropout, a balancer with a state, early stopping, a checkpoint every 10 steps."""
    request, root = garden.requests[label], garden.place("cut")
    cut(request, root, launcher, end, error)
    train_here(str(root), request)
    (resumed,) = events(launcher, "resumed")
    assert (resumed["phase"], resumed["step"] >= 20) == (1, True)
    found, expected = garden.trained(label, "cut"), garden.trained(label, "two")
    assert same_bits(found.params, expected.params)
    assert [r | {"seconds": 0} for r in found.history] == [r | {"seconds": 0} for r in expected.history]


def test_one_process_is_asked_to_stop_and_goes_on(tmp_path: Path, launcher: Path) -> None:
    phases = {"first": {"tasks": ["plant"], "steps": 3}, "later": {"steps": 500}}
    request = ask(document(phases=phases, train={"checkpoint": {"every_steps": 25}, "validate_every": 1000}), tmp_path)
    cut(request, tmp_path, launcher, lambda ranks: ranks[0].send_signal(signal.SIGINT), Stopped)
    assert not train_here(str(tmp_path), request).reused
    assert train_here(str(tmp_path), request).reused
    (resumed,) = events(launcher, "resumed")
    assert resumed["step"] >= 20


def test_one_process_may_train_in_bf16(tmp_path: Path, launcher: Path) -> None:
    request = ask(document(train={"precision": "bf16"}), tmp_path)
    assert train_here(str(tmp_path), request).json("result.json")["ranks"] == 1


def test_the_rank_that_failed_first_is_named_with_its_traceback_and_nothing_is_left_running(tmp_path: Path, launcher: Path) -> None:
    spec = document(models={"trunk": {"kind": "training_inputs:broken"}}, cluster={"processes_per_node": 2})
    request = ask(spec, tmp_path)
    with pytest.raises(CotrainError, match=r"rank-1 failed first: the moss has eaten the fern\nTraceback (?s:.*)in forward\n"):
        train_here(str(tmp_path), request)
    assert processes_of(request["key"]) == []
    (failed,) = events(launcher, "training_failed")
    assert (failed["who"], failed["error"]) == ("rank-1", "RuntimeError")


@pytest.fixture(autouse=True)
def no_processes_left() -> Iterator[None]:
    yield
    left = [p for p in psutil.Process().children(recursive=True) if "trainer.run" in command_of(p)]
    for process in left:
        process.kill()
    assert left == []
