"""Ctrl-C, SIGTERM and SIGKILL in the middle of a run: nothing is left running, nothing half done, and it goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command import TIMEOUT_S, document, finish, left_behind, said, start, until, write, write_csv

from trainer.results import verify

pytestmark = pytest.mark.timeout(600)
STEPS = 200_000
ALONE = {"independent": False, "resamples": 200}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_csv(tmp_path / "table.csv")
    yield tmp_path
    for process in left_behind(tmp_path):
        process.kill()


def job(folder: Path, processes: int, steps: int = STEPS) -> str:
    """A document with more steps than can be done meanwhile, unless it says so."""
    made = document(phases={"joint": {"steps": steps}}, cluster={"processes_per_node": processes}, compare=ALONE)
    made["train"] |= {"checkpoint": {"every_steps": 50}, "validate_every": 100}
    return write(folder, made)


def run(folder: Path, spec: str, *more: str) -> subprocess.Popen[str]:
    """The command in a session of its own, as a terminal starts it. Its output goes to a file: nobody reads it meanwhile."""
    with (folder / "out").open("a") as out, (folder / "err").open("w") as err:
        return start(folder, "run", spec, *more, stdout=out, stderr=err, start_new_session=True)


def trains(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run makes steps and has saved some."""
    until(lambda: said(folder, "checkpoint") and said(folder, "progress"), process)


def ranks_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in left_behind(folder):
        with suppress(psutil.Error):  # others may just have ended
            if "trainer.run" in (command := process.cmdline()) and "torch.distributed.run" not in command:
                found.append(process)
    return found


def nothing_runs(folder: Path) -> bool:
    ends = time.monotonic() + TIMEOUT_S
    while left_behind(folder) and time.monotonic() < ends:
        time.sleep(0.1)
    return not left_behind(folder)


def nothing_is_half_done(folder: Path) -> None:
    assert not list(folder.glob("runs/models/*"))
    for manifest in folder.glob("runs/**/manifest.json"):
        verify(manifest.parent)
    assert not [file.name for file in (folder / "tmp").glob("cotrain-*") if file.is_dir() and file.name != "cotrain-locks"]


def test_ctrl_c_saves_the_state_leaves_no_process_and_the_same_command_goes_on(folder):
    spec = job(folder, 2, steps=1500)
    process = run(folder, spec)
    trains(folder, process)
    assert len(ranks_of(folder)) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(TIMEOUT_S)
    assert left_behind(folder) == []
    assert process.returncode == 130
    told = (folder / "err").read_text()
    assert "the same command goes on from there" in told and "Traceback" not in told
    assert not said(folder, "trained"), "it was over before it was stopped: more steps are needed"
    saved = said(folder, "checkpoint")[-1]
    nothing_is_half_done(folder)

    finish(run(folder, spec))
    goes_on(folder, saved["step"])


def goes_on(folder: Path, step: int) -> None:
    """The second run went on from `step`, and finished."""
    (resumed,) = said(folder, "resumed")
    assert resumed["step"] == step
    assert said(folder, "phase_finished")[-1]["step"] == 1500
    pointer = json.loads((folder / "runs/models/tiny/champion.json").read_text())
    verify(folder / "runs/models/tiny/versions" / pointer["version"])
    assert not list(folder.glob("runs/checkpoints/*/*"))


def test_a_run_whose_command_was_killed_ends_by_itself_and_is_finished_by_the_next(folder):
    spec = job(folder, 1, steps=1500)
    process = run(folder, spec)
    trains(folder, process)
    process.kill()
    assert nothing_runs(folder)
    assert not said(folder, "trained"), "it was over before it was killed: more steps are needed"
    nothing_is_half_done(folder)
    saved = said(folder, "checkpoint")[-1]

    finish(run(folder, spec))
    goes_on(folder, saved["step"])


def test_a_second_ctrl_c_ends_everything_at_once(folder):
    """One rank is made to hang first, so that there is something that does not end by itself."""
    process = run(folder, job(folder, 2))
    trains(folder, process)
    ranks_of(folder)[0].suspend()
    process.send_signal(signal.SIGINT)
    until(lambda: '"stopping", "forced": false' in (folder / "out").read_text(), process)
    process.send_signal(signal.SIGINT)
    process.wait(TIMEOUT_S)
    assert process.returncode == 130
    assert left_behind(folder) == []
    assert "but for the last checkpoint" in (folder / "err").read_text()


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_a_stop_while_a_step_starts_ends_it_cleanly(folder, name):
    """SIGTERM in `train` comes while the ranks import torch and DeepSpeed and gather."""
    process = run(folder, job(folder, 2 if name == "train" else 1, steps=5))
    until(lambda: said(folder, "step_started", step=name), process)
    time.sleep(1.0 if name == "train" else 0.0)
    process.terminate()
    process.wait(TIMEOUT_S)
    assert process.returncode == 130
    assert left_behind(folder) == []
    assert "Traceback" not in (folder / "err").read_text()
    nothing_is_half_done(folder)


def test_a_run_whose_output_nobody_reads_any_more_stops(folder):
    process = start(folder, "run", job(folder, 1), start_new_session=True)
    trains(folder, process)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(TIMEOUT_S)
    assert nothing_runs(folder)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert said(folder, "step_failed", step="train", error="Stopped")
