"""What is seen of a run while it goes."""

from __future__ import annotations

import io
import json
import re

import pytest

from pipelines import show

RUN = {"role": "independent", "task": "digit", "seed": 3}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Screen:
    """A terminal, and what was put on it without control sequences."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch, self._target = patch, Terminal()

    def display(self, columns: int = 100) -> show.Lines | show.Bars:
        for name, value in {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"}.items():
            self._patch.setenv(name, value)
        self._patch.setattr("sys.stdout", self._target)
        return show.display()

    def rows(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._target.getvalue()))]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "step_started", "step": "prepare", "dataset": "digits"}, "prepare digits"),
        ({"event": "step_started", "step": "train", "role": "joint", "task": None, "seed": 0}, "train joint"),
        ({"event": "step_started", "step": "train", **RUN}, "train independent digit seed 3"),
        ({"event": "progress", "step": 17, **RUN}, "train independent digit seed 3"),
        ({"event": "step_started", "step": "plan joint"}, "plan joint"),
    ],
)
def test_what_an_event_is_about_is_the_same_for_a_run_and_its_step(event, said):
    assert show.subject(event) == said


def test_a_program_sees_each_event_as_a_line_at_once(capsys):
    with show.display() as display:
        display({"event": "x", "n": 1})
        assert json.loads(capsys.readouterr().out) == {"event": "x", "n": 1}


def test_a_person_sees_steps_losses_and_what_was_reused(screen):
    with screen.display() as display:
        assert isinstance(display, show.Bars)
        display({"event": "step_started", "step": "plan joint"})
        display({"event": "step_started", "step": "train", **RUN})
        display({"event": "phase_started", "step": 0, "steps": 40, **RUN})
        display({"event": "progress", "step": 20, "steps": 40, "loss": {"digit": 1.2345, "ink": None}, **RUN})
        display({"event": "step_started", "step": "prepare", "dataset": "digits"})
        display({"event": "step_finished", "step": "prepare", "dataset": "digits", "reused": True})
        display({"event": "resumed", "step": 1200, **RUN})
    rows = screen.rows()
    assert any(re.fullmatch(r"· train independent digit seed 3\s.*loss digit 1.23", row) for row in rows)
    assert any(re.fullmatch(r"✓ prepare digits\s.*reused: nothing it depends on has changed", row) for row in rows)
    assert "train independent digit seed 3: going on from step 1,200" in rows
    assert not any("plan joint" in row for row in rows)


def test_a_person_sees_which_step_failed(screen):
    with screen.display() as display:
        display({"event": "step_started", "step": "compare"})
        display({"event": "step_failed", "step": "compare", "error": "DataError"})
    assert any(re.fullmatch(r"✗ compare\s.*DataError", row) for row in screen.rows())


def test_names_and_errors_with_brackets_are_shown_as_they_are(screen):
    with screen.display() as display:
        display({"event": "step_started", "step": "evaluate", "task": "[red]x"})
        display({"event": "metrics_not_served", "port": 1, "reason": "[bold]busy[/]", "fix": "choose another"})
        display({"event": "step_failed", "step": "evaluate", "task": "[red]x", "error": "[/nothing]"})
    rows = screen.rows()
    assert any("evaluate [red]x" in row and "[/nothing]" in row for row in rows)
    assert "no metrics on port 1: [bold]busy[/]; choose another" in rows


def test_a_narrow_terminal_keeps_one_row_a_step(screen):
    losses = {f"task_{n}": 0.5 for n in range(20)}
    with screen.display(60) as display:
        display({"event": "step_started", "step": "train", **RUN})
        display({"event": "progress", "step": 1, "steps": 2, "loss": losses, **RUN})
    rows = [row for row in screen.rows() if row]
    assert max(map(len, rows)) <= 60
    assert all(row.startswith(("·", "train")) for row in rows)


def test_every_event_that_a_run_may_send_is_taken(screen):
    with screen.display() as display:
        for event in ("trained", "training_failed", "checkpoint_passed_over", "something_new"):
            display({"event": event, **RUN})
        display({"event": "stopping", "forced": False})
        display({"event": "stopping", "forced": True})
        display({"event": "metrics_served", "port": 9400})
    assert "stopping now" in screen.rows()
