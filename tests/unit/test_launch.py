"""Launching a training run: SIGTERM is passed on once, and what ranks said is told to the one who asked."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from components import launch
from trainer import node
from trainer.errors import CotrainError, Stopped, UserError

COUNTS = """
import os, signal, sys, time
times = 0
def on(number, frame):
    global times
    times += 1
signal.signal(signal.SIGTERM, on)
open(sys.argv[1], "w").close()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
sys.exit(10 + times)
"""


def ask_when(there: Path, times: int, done: Path) -> None:
    while not there.exists():
        time.sleep(0.02)
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    done.touch()  # not sooner: a signal that comes when nobody waits for it any more ends this process


def test_sigterm_is_passed_on_once_and_the_end_is_waited_for(tmp_path):
    """A second one would cut short what torchrun does on the first."""
    there, done = tmp_path / "there", tmp_path / "done"
    threading.Thread(target=ask_when, args=(there, 3, done)).start()
    before = signal.getsignal(signal.SIGTERM)
    assert node.call([sys.executable, "-c", COUNTS, str(there), str(done)], dict(os.environ)) == (11, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_ends_by_itself_was_not_stopped():
    assert node.call([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ)) == (3, False)


def word(**said: object) -> dict[str, object]:
    return {
        "time": 1.0,
        "who": "rank-1",
        "type": "ValueError",
        "message": "no",
        "faults": [],
        "exit_code": 1,
        "traceback": "Trace\n",
    } | said


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`_train` with a command that leaves these words and ends with this code."""

    def call(left: list[dict[str, object]], code: int = 1, stopped: bool = False):
        def pretend(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
            for n, said in enumerate(left):
                (Path(environment["COTRAIN_FAILURES"]) / f"{n}.json").write_text(json.dumps(said))
            return code, stopped

        monkeypatch.setattr(launch, "call", pretend)
        cluster = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 2}
        return launch._train(str(tmp_path), {"key": "k", "spec": {"cluster": cluster}})

    return call


def test_the_rank_that_failed_first_is_named_with_its_traceback(train):
    with pytest.raises(CotrainError, match="rank-1 failed first: no\nTrace") as caught:
        train([word(time=2.0, who="rank-0", message="peer gone"), word()])
    assert not isinstance(caught.value, UserError)


def test_faults_of_the_user_stay_faults(train):
    fault = {"place": "data.x", "finding": "has no rows", "remedy": "add some"}
    with pytest.raises(UserError) as caught:
        train([word(type="DataError", faults=[fault], traceback="")])
    assert [vars(f) for f in caught.value.faults] == [fault]


def test_a_stop_is_a_stop_whatever_the_ranks_say_of_it(train):
    with pytest.raises(Stopped, match="at step 7"):
        train([word(time=0.5), word(type="Stopped", message="stopped at step 7")], stopped=True)
    with pytest.raises(Stopped, match="before the first step"):
        train([], code=-signal.SIGTERM, stopped=True)
    with pytest.raises(Stopped, match="at step 7"):
        train([word(type="Stopped", message="stopped at step 7")], code=0)


def test_an_end_without_a_word_is_told_with_its_likeliest_cause(train):
    with pytest.raises(CotrainError, match=r"exit code -9 .*memory ran out"):
        train([], code=-signal.SIGKILL)
    with pytest.raises(CotrainError, match=r"exit code 1 and left neither a result nor a word$"):
        train([])


def test_every_thread_of_the_machine_is_given_to_one_rank_only(tmp_path):
    for ranks in (1, 2, 4096):
        threads = int(node.rank_environment(ranks, tmp_path)["OMP_NUM_THREADS"])
        assert 1 <= threads <= max(1, (os.cpu_count() or 1) // ranks)
