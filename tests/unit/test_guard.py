"""What a step that fails on a cluster leaves behind, and the page that is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.guard import causes_page

FAIL = """
import sys
from components.guard import step
from trainer.errors import CotrainError, DataError
root, kind = sys.argv[1:]
with step("train", root, role="joint", task=None):
    if kind == "user":
        raise DataError.at("data.table", "is empty", "fill it")
    if kind == "told":
        error = CotrainError("rank 1 failed first")
        error.markdown = "### rank 1\\n\\n| pod | exit |"
        raise error
    if kind == "bug":
        raise KeyError("```secret```")
"""


def fail(root: Path, kind: str, pod: str = "pod-1") -> int:
    env = os.environ | {"COTRAIN_RUN_ID": "run-7", "COTRAIN_POD_NAME": pod, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", FAIL, str(root), kind], env=env, capture_output=True, check=False).returncode


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTRAIN_RUN_ID", "run-7")
    monkeypatch.delenv("COTRAIN_LOG", raising=False)


@pytest.mark.parametrize(
    ("kind", "says", "faults"),
    [
        ("user", "data.table: is empty\n    fix: fill it", [{"place": "data.table", "finding": "is empty", "remedy": "fill it"}]),
        ("told", "### rank 1\n\n| pod | exit |", []),
        ("bug", "KeyError: ''''secret", []),
    ],
)
def test_a_step_that_fails_leaves_why_below_the_root_and_the_page_says_it(kind, says, faults, tmp_path, run):
    assert fail(tmp_path, kind) == 1
    (file,) = tmp_path.glob("causes/run-7/*.json")
    assert file.name == "train-joint-pod-1.json"
    assert json.loads(file.read_text())["faults"] == faults
    page = causes_page(str(tmp_path), "FAILED")
    assert page.startswith("## train joint\n\n")
    assert says in page


def test_the_first_failure_comes_first_and_what_a_retry_mended_is_not_told(tmp_path, run):
    fail(tmp_path, "user", "pod-b")
    fail(tmp_path, "told", "pod-a")
    page = causes_page(str(tmp_path), "FAILED")
    assert page.index("is empty") < page.index("### rank 1")
    assert causes_page(str(tmp_path), "SUCCEEDED") == "Nothing failed.\n"


def test_a_failure_that_left_no_word_is_told_as_such(tmp_path, run):
    assert "No step said why" in causes_page(str(tmp_path), "FAILED")


def test_on_one_machine_nothing_is_left_below_the_root(tmp_path, monkeypatch):
    env = {name: value for name, value in os.environ.items() if name != "COTRAIN_RUN_ID"} | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", FAIL, str(tmp_path), "user"], env=env, capture_output=True, check=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("COTRAIN_RUN_ID", raising=False)
    assert "the log of the command has it all" in causes_page(str(tmp_path), "FAILED")
