"""Processes stop when the command that they work for lets go of the lifeline, or ends in whatever way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from trainer.lifeline import VARIABLE, Lifeline, follow

FOLLOWER = "from trainer.lifeline import follow; follow(); print('follows', flush=True); import time; time.sleep(600)"
HOLDER = f"""
import os, subprocess, sys, time
from trainer.lifeline import Lifeline
line = Lifeline()
child = subprocess.Popen([sys.executable, "-c", {FOLLOWER!r}], env=os.environ | line.environment, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def line():
    line = Lifeline()
    yield line
    line.let_go()
    for process in line.holders():
        process.kill()


def follower(line: Lifeline, shell: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FOLLOWER]
    if shell:  # stays in between, as KFP's does
        command = ["sh", "-c", '"$@"; exit 3', "sh", *command]
    env = os.environ | line.environment
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("shell", [False, True], ids=["child", "behind a shell"])
def test_a_process_is_stopped_when_the_line_is_let_go(line, shell):
    process = follower(line, shell)
    assert process.stdout and process.stdout.readline() == "follows\n"
    assert {p.pid for p in line.holders()} >= {process.pid}
    line.let_go()
    assert process.wait(60) == (3 if shell else -signal.SIGTERM)
    assert line.holders() == []


def test_a_process_that_starts_after_that_is_stopped_too(line):
    line.let_go()
    assert follower(line).wait(60) == -signal.SIGTERM


def test_a_process_is_stopped_when_the_command_was_killed():
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        assert int(command.stdout.readline()) > 0
        assert command.stdout.readline() == "follows\n"
        command.kill()
        assert command.stdout.read() == ""  # the child writes to it too: it ends when both have ended


def test_a_process_is_not_stopped_as_long_as_the_line_is_held(line):
    process = follower(line)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.wait()


def test_without_a_command_nothing_happens(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    import threading

    before = set(threading.enumerate())  # those of earlier tests may end meanwhile
    follow()
    assert set(threading.enumerate()) <= before
