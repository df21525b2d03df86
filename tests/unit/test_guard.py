"""What a step that fails on a cluster leaves behind, and the page that is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.guard import FINAL_S, causes_page
from trainer.outcomes import record
from trainer.results import keyed

VERDICT = {
    "tasks": {
        "digit": {
            "metric": "accuracy", "joint": {"value": 0.9}, "vs_independent": None, "vs_champion": None,
            "champion_note": "", "champion_status": "none",
        }
    },
    "cost": {"joint": None, "independent": None}, "gate": {"checks": []},
}  # fmt: skip
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
    if kind == "store":
        from trainer.stores.s3_faults import remedy
        raise CotrainError(remedy("NoCredentialsError"))
    if kind == "final":
        error = CotrainError("rank 1 failed first: no")
        error.final = True
        raise error
"""


def step(root: Path, kind: str, pod: str = "pod-1", run: str = "run-7") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COTRAIN_RUN_ID": run, "COTRAIN_POD_NAME": pod, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", FAIL, str(root), kind], env=env, capture_output=True, text=True, check=False)


def fail(root: Path, kind: str, pod: str = "pod-1") -> int:
    return step(root, kind, pod).returncode


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


def test_a_run_that_succeeded_says_so_on_each_task_and_what_it_survived(tmp_path, run):
    assert causes_page(str(tmp_path), "SUCCEEDED") == "Nothing failed.\n"
    fail(tmp_path, "told")
    verdict = keyed(str(tmp_path), "compare", "v" * 24, lambda folder: (folder / "verdict.json").write_text(json.dumps(VERDICT)) and None)
    said = {"name": "digits", "verdict": verdict.key, "report": "r", "published": "", "reasons": ["worst_drop: digit lost 0.3"]}
    record(str(tmp_path), "k" * 24, "run-7", **said)
    page = causes_page(str(tmp_path), "SUCCEEDED")
    assert page.startswith("# Trained and judged: digits\n")
    assert "- digit: accuracy 0.9, compared with nothing\n" in page
    assert "results/report/r/report.html" in page
    assert "a gate said no\n\n- worst_drop: digit lost 0.3\n" in page
    assert page.index("## Survived") < page.index("### rank 1")
    record(str(tmp_path), "k" * 24, "run-7", **said | {"published": "s3://models/digits/versions/1", "reasons": []})
    page = causes_page(str(tmp_path), "SUCCEEDED")
    assert page.startswith("# Published: digits\n")
    assert "- published: s3://models/digits/versions/1\n" in page


def test_what_has_failed_for_good_is_not_done_again_in_its_run(tmp_path):
    assert "rank 1 failed first: no" in step(tmp_path, "final").stderr
    again = step(tmp_path, "well", "pod-2")
    assert again.returncode == 1
    assert "rank 1 failed first: no\n(failed for good in this run" in again.stderr
    assert len(list(tmp_path.glob("causes/run-7/*.json"))) == 1
    assert step(tmp_path, "well", run="run-8").returncode == 0
    (file,) = tmp_path.glob("causes/run-7/*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"time": time.time() - FINAL_S - 1}))  # somebody retries it by hand
    assert step(tmp_path, "well", "pod-3").returncode == 0


def test_a_step_without_credentials_says_which_secret_it_has_them_from(tmp_path, monkeypatch):
    monkeypatch.setenv("COTRAIN_NAMESPACE", "team")
    said = step(tmp_path, "store").stderr
    assert "here they come from the Secret cotrain-store; see: kubectl get secret cotrain-store -n team" in said


def test_what_may_go_away_by_itself_is_tried_again(tmp_path):
    fail(tmp_path, "user")
    assert step(tmp_path, "well", "pod-2").returncode == 0


def test_a_failure_that_left_no_word_is_told_as_such(tmp_path, run):
    assert "No step said why" in causes_page(str(tmp_path), "FAILED")


def test_on_one_machine_nothing_is_left_below_the_root(tmp_path, monkeypatch):
    env = {name: value for name, value in os.environ.items() if name != "COTRAIN_RUN_ID"} | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", FAIL, str(tmp_path), "user"], env=env, capture_output=True, check=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("COTRAIN_RUN_ID", raising=False)
    assert "the log of the command has it all" in causes_page(str(tmp_path), "FAILED")
