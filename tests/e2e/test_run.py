"""`cotrain run`, from a document to a published model: what it makes, and what it does not do twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Ran, cotrain, document, environment, on_terminal, write, write_csv

from trainer.results import verify

pytestmark = pytest.mark.timeout(600)

DIGITS = """
name: scans
data:
  digits: {kind: digits}
models:
  trunk: {kind: mlp, hidden: [32]}
tasks:
  digit: {data: digits, model: trunk, input: image, target: digit, metrics: [accuracy, f1_macro]}
  ink:   {data: digits, model: trunk, input: image, target: ink, metrics: [r2]}
phases:
  joint: {epochs: 20, balancer: uncertainty}
train: {optimizer: {kind: adamw, lr: 0.01}, batch: 128}
compare: {resamples: 200}
observe: {every_s: 0.2}
"""
SMALL = ["--set", "phases.joint.steps=60", "--set", "phases.joint.epochs=null", "--set", "cluster.processes_per_node=1"]
STATIC = ["--set", "phases.joint.balancer={kind: static, weights: {digit: 0.0, ink: 1.0}}"]
MORE = ["--set", "phases.joint.steps=61", "--set", "compare.independent=false"]
WORK = {"prepare digits", "train joint", "train independent digit", "train independent ink", "evaluate digit", "evaluate ink"}
LAST = {"compare", "publish", "report"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scans")
    (made / "scans.yaml").write_text(DIGITS)
    return made


@dataclass
class After:
    """A run, and what was published when it had ended: other runs in the folder come after it."""

    ran: Ran
    champion: dict[str, Any]
    versions: set[str]


def after(folder: Path, *more: str, code: int = 0) -> After:
    ran = cotrain(folder, "run", "scans.yaml", *SMALL, *more, code=code)
    models = folder / "runs/models/scans"
    return After(ran, json.loads((models / "champion.json").read_text()), {version.name for version in (models / "versions").iterdir()})


@pytest.fixture(scope="module")
def first(folder: Path) -> After:
    return after(folder)


@pytest.fixture(scope="module")
def again(folder: Path, first: After) -> After:
    return after(folder)


@pytest.fixture(scope="module")
def other_metric(folder: Path, again: After) -> After:
    return after(folder, "--set", "tasks.ink.metrics=[mae]", "--set", "compare.gate.worst_drop=100")


@pytest.fixture(scope="module")
def worse(folder: Path, other_metric: After) -> After:
    """The trunk no longer learns to tell digits, so the gate that protects that task says no."""
    return after(folder, *STATIC, "--set", "compare.gate.beat_champion=[digit]", code=3)


@pytest.fixture(scope="module")
def better(folder: Path, worse: After) -> After:
    return after(folder, *MORE)


@pytest.fixture(scope="module")
def better_again(folder: Path, better: After) -> After:
    return after(folder, *MORE)


def test_a_run_trains_the_joint_model_and_a_baseline_for_each_task(first):
    assert first.ran.trained() == {"joint", "digit", "ink"}
    assert first.ran.reused() == dict.fromkeys(WORK | LAST, False)


def test_a_run_says_the_verdict_of_each_task_and_where_everything_is(folder, first):
    for task, metric in (("digit", "accuracy"), ("ink", "r2")):
        assert any(
            line.startswith(f"{task}: {metric} ") and line.endswith((", better", ", same", ", worse"))
            for line in first.ran.err.splitlines()
        )
    (report,) = [line.removeprefix("report: ") for line in first.ran.err.splitlines() if line.startswith("report: ")]
    page = (folder / report).read_text()
    assert page.startswith("<!doctype html>") and "digit" in page and "ink" in page
    assert json.loads((folder / report).with_name("outcome.json").read_text())["promoted"] is True


def test_the_champion_is_a_version_that_is_whole(folder, first):
    version = folder / "runs/models/scans/versions" / first.champion["version"]
    verify(version)
    files = set(json.loads((version / "manifest.json").read_text())["files"])
    assert files == {"model.safetensors", "spec.json", "preprocessing.json", "metrics.json", "README.md"}


def test_what_was_published_predicts_raw_rows_in_a_shell_and_in_five_lines_of_python(folder, first):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = [{"image": image.reshape(8, 8).tolist()} for image in images[:50]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell = cotrain(folder, "predict", "runs/models/scans", "rows.jsonl").out
    five = """
import json, trainer
model = trainer.load("runs/models/scans")
rows = [json.loads(line) for line in open("rows.jsonl")]
for prediction in model.predict(rows):
    print(json.dumps(prediction))
"""
    python = subprocess.run(
        [sys.executable, "-c", five], cwd=folder, env=environment(folder), capture_output=True, text=True, check=True
    ).stdout
    assert python == shell
    predictions = [json.loads(line) for line in shell.splitlines()]
    right = sum(str(row["digit"]["value"]) == str(label) for row, label in zip(predictions, labels[:50], strict=True))
    assert right > 35
    assert all(isinstance(row["ink"]["value"], float) for row in predictions)
    only = cotrain(folder, "predict", "runs/models/scans", "rows.jsonl", "--task", "ink").out.splitlines()
    assert [set(json.loads(line)) for line in only] == [{"ink"}] * 50


def test_standard_output_is_a_json_line_an_event_where_it_is_no_terminal(first):
    assert {"step_started", "phase_started", "progress", "validated", "trained", "step_finished"} <= {e["event"] for e in first.ran.events}
    times = [e["time"] for e in first.ran.events if e["event"].startswith("step_")]
    assert times == sorted(times)
    losses = [e["loss"] for e in first.ran.of("validated", role="joint")]
    assert all(set(loss) == {"digit", "ink"} for loss in losses)
    assert losses[-1]["digit"] < losses[0]["digit"]


def test_the_same_run_again_does_nothing_again(first, again):
    assert again.ran.trained() == set()
    assert again.ran.reused() == dict.fromkeys(WORK | LAST, True)
    assert "reused everything" in again.ran.err
    assert again.champion == first.champion
    said = [line for line in first.ran.err.splitlines() if line.startswith(("digit:", "ink:", "published:"))]
    assert [line for line in again.ran.err.splitlines() if line.startswith(("digit:", "ink:", "published:"))] == said


def test_another_metric_or_gate_trains_nothing(first, other_metric):
    assert other_metric.ran.trained() == set()
    reused = other_metric.ran.reused()
    assert {step for step, found in reused.items() if not found} == {"evaluate ink", "compare", "report"}
    assert "ink: mae" in other_metric.ran.err
    assert "reused: prepare digits" in other_metric.ran.err
    assert other_metric.champion == first.champion


def test_another_balancer_trains_the_joint_model_and_no_baseline(worse):
    assert worse.ran.trained() == {"joint"}
    assert worse.ran.reused()["train independent digit"] and worse.ran.reused()["train independent ink"]


def test_a_gate_that_says_no_publishes_nothing_and_says_why(folder, first, worse):
    assert "nothing was published, a gate said no:\n    " in worse.ran.err
    assert "digit" in worse.ran.err.rpartition("a gate said no:")[2]
    assert "Traceback" not in worse.ran.err
    assert worse.champion == first.champion
    assert worse.versions == {first.champion["version"]}
    assert worse.ran.of("step_finished", step="publish")[0]["published"] == ""
    report = next(line.removeprefix("report: ") for line in worse.ran.err.splitlines() if line.startswith("report: "))
    assert (folder / report).is_file()


def test_a_model_is_compared_with_the_one_that_was_promoted_before(worse):
    assert any(line.startswith("digit: accuracy") and "champion" in line and line.endswith("worse") for line in worse.ran.err.splitlines())


def test_a_better_model_takes_over_and_its_run_is_not_done_twice(first, better, better_again):
    """What it was compared with is no longer the champion then, and yet the second run finds the first."""
    assert better.champion["version"] != first.champion["version"]
    assert "champion" in better.ran.err
    assert better_again.ran.trained() == set()
    assert set(better_again.ran.reused().values()) == {True}, better_again.ran.reused()
    assert better_again.champion == better.champion
    said = better.ran.err.partition("reused:")[0]
    assert better_again.ran.err.startswith(said)


def test_seeds_repeat_the_training_and_other_rows_under_the_same_name_train_anew(tmp_path):
    write_csv(tmp_path / "table.csv")
    spec = write(tmp_path, document(seed=5, seeds=2, compare={"independent": False, "resamples": 200}))
    first = cotrain(tmp_path, "run", spec)
    assert first.trained() == {"joint 5", "joint 6"}
    assert all(isinstance(e["seed"], int) for e in first.of("phase_started"))
    assert "compared with nothing" in first.err
    score = json.loads(next((tmp_path / "runs/results/score").glob("*/scores.json")).read_text())
    assert [run["seed"] for run in score["models"]["joint"]] == [5, 6]
    assert score["models"]["independent"] == []

    write_csv(tmp_path / "table.csv", rows=420)
    second = cotrain(tmp_path, "run", spec, "--set", "seeds=1")
    assert second.reused()["prepare table"] is False
    assert second.trained() == {"joint 5"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Two datasets on two ranks, run by somebody at a terminal."""
    folder = tmp_path_factory.mktemp("mixed")
    write_csv(folder / "table.csv", rows=900)
    write_csv(folder / "few.csv", rows=200, seed=1)
    made = document(cluster={"processes_per_node": 2}, compare={"independent": False, "resamples": 200})
    made["data"]["few"] = {**made["data"]["table"], "uri": "few.csv"}
    made["tasks"]["size"] = {**made["tasks"]["size"], "data": "few"}
    made["phases"] = {"joint": {"epochs": 1, "mixer": {"kind": "temperature", "temperature": 2.0}}}
    made["train"] |= {"zero": 2, "checkpoint": {"every_steps": 10}}
    made["observe"] |= {"port": 0}
    return folder, *on_terminal(folder, "run", write(folder, made))


def test_two_datasets_of_different_sizes_are_mixed_on_two_ranks(mixed):
    folder, code, screen = mixed
    assert code == 0, screen
    result = json.loads(next((folder / "runs/results/train").glob("*/result.json")).read_text())
    assert result["ranks"] == 2
    assert all(isinstance(n, int) for entry in result["data"].values() for n in entry["rows"].values())
    assert result["task_steps"]["side"] > result["task_steps"]["size"] > 0


def test_a_terminal_shows_a_bar_for_each_step_with_the_losses_of_each_task(mixed):
    _, _, screen = mixed
    rows = [line.strip() for line in re.split(r"[\r\n]+", screen)]
    for step in ("check", "prepare table", "prepare few", "train joint", "evaluate side", "evaluate size", "compare", "publish", "report"):
        assert any(re.fullmatch(rf"✓ {step}\s.*━{{16}}\s.*0:0\d:\d\d.*", row) for row in rows), step
    assert any(re.search(r"train joint.*loss .*side [\d.]+  size [\d.]+", row) for row in rows)
    assert any(re.search(r"train joint.*valid .*side [\d.]+  size [\d.]+", row) for row in rows)
    assert any(row.startswith("train joint: checkpoint at step 10 in ") for row in rows)
    assert any(row.startswith("metrics at http://localhost:") for row in rows)
    assert any(row.startswith("side: accuracy ") for row in rows)
    assert any(row.startswith("published: ") for row in rows)
    assert '{"' not in screen
    assert max(map(len, rows)) <= 120


def test_this_checkout_is_what_was_tested(folder):
    where = [sys.executable, "-c", "import pipelines.cli; print(pipelines.cli.__file__)"]
    told = subprocess.run(where, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()).parents[1] == ROOT
