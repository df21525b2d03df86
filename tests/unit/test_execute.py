"""What the command makes of the words that failed steps left, and of the events of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.execute import Finished, _explain, _note
from trainer.errors import CotrainError, GateFailed, Stopped, UserError

FAULT = {"place": "data.x", "finding": "has no rows", "remedy": "add some"}


def word(**said: object) -> dict[str, object]:
    return {
        "time": 1.0,
        "who": "prepare",
        "type": "ValueError",
        "message": "no",
        "faults": [],
        "exit_code": 1,
        "traceback": "Trace: no\n",
    } | said


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "pipeline.log"
    file.write_bytes(b"\n".join(b"line %d" % n for n in range(100)) + b"\n\xff last")
    return file


def test_the_faults_of_all_steps_are_told_once_each(log):
    other = FAULT | {"place": "data.y"}
    with pytest.raises(UserError) as caught:
        _explain([word(type="DataError", faults=[FAULT]), word(type="DataError", faults=[FAULT, other]), word()], log)
    assert [fault.place for fault in caught.value.faults] == ["data.x", "data.y"]


def test_a_fault_of_ours_is_told_with_its_traceback_and_the_log(log):
    with pytest.raises(CotrainError) as caught:
        _explain([word()], log)
    assert str(caught.value) == f"prepare failed: Trace: no\nthe whole log is {log}"
    assert caught.value.exit_code == 1


def test_what_an_error_of_ours_says_is_not_said_twice(log):
    with pytest.raises(CotrainError) as caught:
        _explain(
            [
                word(
                    who="train",
                    type="CotrainError",
                    message="rank-1 failed first\nTrace",
                    traceback="Trace of the step\nrank-1 failed first\nTrace",
                )
            ],
            log,
        )
    assert str(caught.value) == f"train failed: rank-1 failed first\nTrace\nthe whole log is {log}"


def test_a_failure_without_a_word_shows_the_end_of_the_log(log):
    with pytest.raises(CotrainError, match=r"line 99\n.* last\nthe whole log is ") as caught:
        _explain([], log)
    assert "line 50\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Stopped, GateFailed])
def test_stops_and_gates_stay_what_they_are(log, kind):
    with pytest.raises(kind, match=r"^so it is$"):
        _explain([word(type=kind.__name__, message="so it is", traceback="")], log)


def test_what_a_run_came_to_is_read_from_its_events(tmp_path):
    finished = Finished(tmp_path)
    done = {"event": "step_finished"}
    for event in (
        {"event": "step_started", "step": "compare"},
        done | {"step": "check"},
        done | {"step": "train", "role": "independent", "task": "side", "seed": 2, "reused": True},
        done | {"step": "train", "role": "joint", "task": None, "seed": 0, "reused": False},
        done | {"step": "compare", "key": "c", "reused": False},
        done | {"step": "publish", "published": "there", "version": "v", "promoted": True, "reasons": [], "reused": False},
        done | {"step": "report", "key": "r", "reused": False},
    ):
        _note(finished, event)
    assert finished.reused == ["train independent side seed 2"]
    assert finished.worked == ["train joint", "compare", "publish", "report"]
    assert (finished.verdict_key, finished.report_key) == ("c", "r")
    assert finished.outcome == {"published": "there", "version": "v", "promoted": True, "reasons": []}
