"""The compiled pipeline, run from its YAML by KFP's local runner, and what others then find: `retrain` above all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import cotrain, document, environment, finish, start, write, write_csv
from finished import finished
from kfp_server import KfpServer, serving

pytestmark = pytest.mark.timeout(600)

RUN = """
import sys, warnings
from kfp import components, local
from pipelines.compiled import compile_pipeline
warnings.simplefilter("ignore")
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], raise_on_error=True)
pipeline = components.load_component_from_text(compile_pipeline())
pipeline(spec="job.yaml", root=sys.argv[1], cluster_launcher="local", train_zero_stage="1", changes=["train.batch=16"])
"""
CHANGES = ["--set", "cluster.launcher=local", "--set", "train.zero.stage=1", "--set", "train.batch=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiled pipeline has trained a small document, changed by its parameters."""
    made = tmp_path_factory.mktemp("compiled")
    write_csv(made / "table.csv")
    tasks = {"side": document()["tasks"]["side"]}
    write(made, document(tasks=tasks, phases={"joint": {"steps": 10}}, compare={"resamples": 100, "independent": False}))
    command = [sys.executable, "-c", RUN, str(made / "runs"), str(made / "kfp")]
    ran = subprocess.run(command, cwd=made, env=environment(made), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    return made


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with serving() as state:
        yield state


def reach(folder: Path, server: KfpServer) -> dict[str, str]:
    return {"KFP_ENDPOINT": server.url, "COTRAIN_ROOT": str(folder / "runs"), "COTRAIN_IMAGE": "cotrain:1", "COTRAIN_POLL_S": "0.05"}


def artifact(folder: Path, step: str, name: str) -> Any:
    """What the last run of a step said of an artifact."""
    (file,) = folder.glob(f"kfp/**/{step}/executor_output.json")
    return json.loads(file.read_text())["artifacts"][name]["artifacts"][0]


def test_the_compiled_pipeline_trains_what_its_parameters_say_and_its_artifacts_say_where(folder):
    outcomes = [json.loads(file.read_text())["published"] for file in (folder / "runs" / "outcomes").glob("*.json")]
    published = Path(artifact(folder, "publish", "model")["uri"])
    assert outcomes.count(str(published)) == 1
    spec = json.loads((published / "spec.json").read_text())
    assert (spec["train"]["batch"], spec["train"]["zero"]["stage"], spec["cluster"]["launcher"]) == (16, 1, "local")
    assert Path(artifact(folder, "prepare", "data")["uri"], "manifest.json").is_file()
    assert Path(artifact(folder, "report", "page")["uri"]).read_text().startswith("<!doctype html>")
    assert Path(artifact(folder, "causes", "page")["uri"]).read_text() == "Nothing failed.\n"


def test_retrain_finds_what_the_pipeline_did_and_asks_no_server(folder, server):
    ran = cotrain(folder, "retrain", "job.yaml", *CHANGES, "--no-wait", extra=reach(folder, server))
    assert "nothing submitted" in ran.out
    assert "side: accuracy" in ran.out
    assert not server.requests


def test_two_triggers_at_once_submit_one_run_and_both_say_what_came_of_it(folder, server):
    def on_run(run: dict[str, Any]) -> None:
        finished(str(folder / "runs"), run["display_name"].rpartition("-")[2], run["run_id"])
        server.finish(run["run_id"])

    server.on_run = on_run
    both = [start(folder, "retrain", "job.yaml", "--set", "seed=5", extra=reach(folder, server)) for _ in range(2)]
    said = [finish(process).out for process in both]
    assert len(server.runs) == 1
    assert all("rating: " in out for out in said)
    assert sum("submitted: " in out for out in said) == 1


def test_a_trigger_that_is_killed_while_it_submits_leaves_the_key_to_the_next(folder, server):
    with server.lock:  # the server answers nobody, so the first one is killed with its claim made and no run
        first = start(folder, "retrain", "job.yaml", "--set", "seed=6", "--no-wait", extra=reach(folder, server))
        claims = folder / "runs" / "claims"
        held = set(claims.glob("[0-9a-f]*.json")) if claims.is_dir() else set()
        # it connects first: let just that through
        server.lock.release()
        while True:
            over = first.poll() is not None
            if set(claims.glob("[0-9a-f]*.json")) - held:
                break
            assert not over
            time.sleep(0.01)
        server.lock.acquire()
        first.kill()
        first.wait()
    server.runs.clear()
    (claim,) = set(claims.glob("[0-9a-f]*.json")) - held
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"run": "", "at": 0}))
    ran = cotrain(folder, "retrain", "job.yaml", "--set", "seed=6", "--no-wait", extra=reach(folder, server))
    assert "submitted: " in ran.out
    assert len(server.runs) == 1
