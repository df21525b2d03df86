from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import GateFailed, LaunchError, Stopped
from trainer.observe import emit, leave_word, timed, words


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("COTRAIN_EVENTS", str(file))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


def test_an_event_is_one_json_line_on_standard_output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTRAIN_EVENTS", raising=False)
    emit("hello", text="two\nlines", path=Path("/x"))
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(line)
    assert event.pop("time") > 0
    assert event == {"event": "hello", "text": "two\nlines", "path": "/x"}


def test_lines_of_several_processes_do_not_mix(events, tmp_path: Path) -> None:
    code = "from trainer.observe import emit\nfor i in range(300): emit('e', who=%d, i=i, text='x' * 2000)"
    for process in [subprocess.Popen([sys.executable, "-c", code % who], cwd=Path(__file__).parents[2]) for who in range(3)]:
        assert process.wait() == 0
    found = events()
    assert [sorted(e["i"] for e in found if e["who"] == who) for who in range(3)] == [list(range(300))] * 3


def test_a_step_says_that_it_began_and_ended_and_what_it_found(events) -> None:
    with timed("prepare", dataset="d") as found:
        found["reused"] = True
    assert [(e["event"], e["step"], e["dataset"], e.get("reused")) for e in events()] == [
        ("step_started", "prepare", "d", None), ("step_finished", "prepare", "d", True)
    ]  # fmt: skip


def test_a_step_that_fails_says_so(events) -> None:
    with pytest.raises(KeyError), timed("train"):
        raise KeyError("x")
    assert [(e["event"], e.get("error")) for e in events()] == [("step_started", None), ("step_failed", "KeyError")]


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_words_tell_whose_fault_it_was_and_the_first_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTRAIN_FAILURES", str(tmp_path))
    leave_word("rank-1", raised(RuntimeError("boom")))
    leave_word("rank-0", raised(LaunchError.at("cluster", "no GPU", "set it to 0")))
    leave_word("rank-2", Stopped("at step 3"))
    leave_word("rank-3", GateFailed("no"))
    first, second, third, fourth = words(tmp_path)
    assert (first["who"], first["type"], first["exit_code"]) == ("rank-1", "RuntimeError", 1)
    assert "RuntimeError: boom" in first["traceback"]
    assert second["faults"] == [{"place": "cluster", "finding": "no GPU", "remedy": "set it to 0"}]
    assert (second["exit_code"], second["traceback"]) == (2, "")
    assert (third["type"], third["message"], third["exit_code"]) == ("Stopped", "at step 3", 130)
    assert fourth["exit_code"] == 3


def test_nobody_listens_and_half_a_word_is_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTRAIN_FAILURES", raising=False)
    leave_word("rank-0", ValueError("x"))
    (tmp_path / "rank-0-12.part").write_text('{"time": 1')
    assert words(tmp_path) == []
