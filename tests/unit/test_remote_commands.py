"""submit, schedule, retrain, status, logs, cancel: what a person types, what the server is asked, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kube_server
import pytest
from click.testing import CliRunner, Result
from cluster_jobs import launching_pod
from command import document, write, write_csv
from finished import finished
from kfp_server import KfpServer, serving

from pipelines import cancel as cancelling
from pipelines import remote_commands
from pipelines.cli import main
from trainer.stores import open_store


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    for name in ("KUBERNETES_SERVICE_HOST", "KF_PIPELINES_ENDPOINT", "KFP_TOKEN", "KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote_commands, "POLL_S", 0.02)
    write_csv(tmp_path / "table.csv", rows=20)
    write(tmp_path, document())
    with serving() as state:
        monkeypatch.setenv("KFP_ENDPOINT", state.url)
        monkeypatch.setenv("COTRAIN_ROOT", str(tmp_path / "runs"))
        monkeypatch.setenv("COTRAIN_IMAGE", "registry.example.com/cotrain:1")
        yield state


def cotrain(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def given(server: KfpServer) -> dict[str, Any]:
    (run,) = server.runs.values()
    return run["runtime_config"]["parameters"]


def ends(server: KfpServer, root: Path, **how: Any) -> Callable[[dict[str, Any]], None]:
    """A pipeline that is done at once, and leaves what it leaves."""

    def on_run(run: dict[str, Any]) -> None:
        server.step(run["run_id"], "check", "SUCCEEDED", "pod-check")
        server.step(run["run_id"], "train joint", "SUCCEEDED", "pod-train")
        key = run["display_name"].rpartition("-")[2]
        finished(str(root), key, run["run_id"], **how)
        server.finish(run["run_id"])

    return on_run


# --- submit ---------------------------------------------------------------------------------------------------------


def test_submit_gives_a_run_the_document_with_its_changes_and_says_where_to_look(server, tmp_path):
    done = cotrain("submit", "job.yaml", "--set", "train.batch=16", "--set", "cluster.launcher=job", "--service-account", "robot")
    (run,) = server.runs.values()
    assert "pipeline: uploaded" in done.output
    assert f"run: {run['run_id']}\n{server.url}/#/runs/details/{run['run_id']}" in done.output
    assert set(given(server)) == {"spec", "root"}
    sent = json.loads(given(server)["spec"])
    assert (sent["train"]["batch"], sent["cluster"]["launcher"]) == (16, "job")
    assert given(server)["root"] == str(tmp_path / "runs")
    assert run["service_account"] == "robot"
    assert run["display_name"].startswith("tiny-")


@pytest.mark.parametrize(
    ("image", "said"), [(None, "--image: is not given"), ("Cotrain:", "--image: 'Cotrain:' can't be the name of an image")]
)
def test_an_image_that_no_pod_could_get_is_refused_at_submission(image, said, server, monkeypatch):
    monkeypatch.delenv("COTRAIN_IMAGE")
    assert said in cotrain("submit", "job.yaml", *(["--image", image] if image else []), code=2).output
    assert not server.runs


def test_submit_uploads_a_pipeline_once(server):
    assert "pipeline: uploaded" in cotrain("submit", "job.yaml").output
    assert "pipeline: unchanged" in cotrain("submit", "job.yaml").output
    assert len(server.versions) == 1
    assert len(server.runs) == 2


def test_submit_waits_if_it_is_asked_to_and_says_what_came_of_it(server, tmp_path):
    server.on_run = ends(server, tmp_path / "runs")
    done = cotrain("submit", "job.yaml", "--wait")
    assert "  train joint: succeeded\n" in done.output
    assert "rating: " in done.output
    assert f"published: {tmp_path}/runs/models/tiny/versions/1-1" in done.output


def test_a_gate_that_said_no_is_exit_code_3(server, tmp_path):
    server.on_run = ends(server, tmp_path / "runs", published=False)
    done = cotrain("submit", "job.yaml", "--wait", code=3)
    assert "a gate said no:\n    price is worse by 0.3" in done.output


def test_a_step_that_failed_says_why_and_whose_fault_it_is(server, tmp_path):
    def fails(faults: list[dict[str, str]]) -> Callable[[dict[str, Any]], None]:
        def on_run(run: dict[str, Any]) -> None:
            cause = {"time": 1, "step": "train joint", "said": "# why", "text": "rank 1 ran out of memory", "faults": faults}
            open_store(str(tmp_path / "runs")).write(f"causes/{run['run_id']}/train-joint-pod.json", json.dumps(cause).encode())
            server.finish(run["run_id"], "FAILED")

        return on_run

    server.on_run = fails([])
    assert "ended as FAILED; train joint failed first: rank 1 ran out of memory" in cotrain("submit", "job.yaml", "--wait", code=1).output
    server.on_run = fails([{"place": "data.table", "finding": "is empty", "remedy": "fill it"}])
    assert "data.table: is empty\n    fix: fill it" in cotrain("submit", "job.yaml", "--wait", code=2).output
    (_, run) = server.runs
    assert "train joint failed: rank 1 ran out of memory" in cotrain("status", run).output


def test_a_run_that_was_terminated_is_exit_code_130(server):
    server.on_run = lambda run: server.finish(run["run_id"], "CANCELED")
    assert "was terminated" in cotrain("submit", "job.yaml", "--wait", code=130).output


def test_a_document_that_is_too_long_goes_to_the_store(server, s3_bucket):
    bucket = s3_bucket()
    document_ = document(models={"trunk": {"kind": "mlp", "hidden": [8] * 4000}})
    write(Path(), document_)
    cotrain("submit", "job.yaml", "--root", f"{bucket}/runs")
    uri = given(server)["spec"]
    assert uri.startswith(f"{bucket}/runs/specs/")
    folder, _, name = uri.rpartition("/")
    assert json.loads(open_store(folder).read(name))["models"]["trunk"]["hidden"] == [8] * 4000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job.yaml", "--set", "train.batch=no"], "--set train.batch"),
        (["job.yaml", "--set", "models.trunk.hidden=" + str([8] * 4000)], "parameter spec: has 1"),
        (["job.yaml", "--root", "runs"], "--root: 'runs' is a folder of this machine"),
        (["nothing.yaml"], "nothing.yaml"),
        (["job.yaml", "--kfp", "localhost:8888"], "--kfp: 'localhost:8888' is no URL"),
        (["job.yaml", "--kfp", "http://127.0.0.1:1"], "can't be reached"),
        (["job.yaml", "--token-file", "/nowhere"], "--token-file: there is no readable file"),
    ],
)
def test_what_can_not_be_submitted_is_told_with_exit_code_2_and_nothing_is_submitted(arguments, says, server):
    done = cotrain("submit", *arguments, code=2)
    assert says in done.output
    assert "fix: " in done.output
    assert not server.runs


def test_a_namespace_that_is_missing_or_not_ours_is_told(tmp_path, server, monkeypatch):
    with serving(multi_user=True) as shared:
        monkeypatch.setenv("KFP_ENDPOINT", shared.url)
        assert "fix: give the namespace of the profile: --namespace" in cotrain("submit", "job.yaml", code=2).output
        assert (
            "fix: ask for the role to edit pipelines in namespace other"
            in cotrain("submit", "job.yaml", "--namespace", "other", code=2).output
        )
        cotrain("submit", "job.yaml", "--namespace", "team")
        assert len(shared.runs) == 1


# --- retrain --------------------------------------------------------------------------------------------------------


def test_retrain_submits_what_changed_and_nothing_when_nothing_did(server, tmp_path):
    server.on_run = ends(server, tmp_path / "runs")
    first = cotrain("retrain", "job.yaml")
    assert "submitted: " in first.output
    assert "rating: " in first.output
    asked = len(server.requests)
    again = cotrain("retrain", "job.yaml")
    assert "unchanged since" in again.output
    assert "nothing submitted" in again.output
    assert "rating: " in again.output
    assert len(server.requests) == asked
    with (tmp_path / "table.csv").open("a") as file:
        file.write("0.5,0.5,left,1.0\n")
    assert "submitted: " in cotrain("retrain", "job.yaml").output
    assert len(server.runs) == 2


def test_retrain_ends_as_the_gate_says_and_unchanged_is_no_failure(server, tmp_path):
    server.on_run = ends(server, tmp_path / "runs", published=False)
    cotrain("retrain", "job.yaml", code=3)
    assert "a gate said no then: nothing was published" in cotrain("retrain", "job.yaml").output
    assert len(server.runs) == 1


def test_retrain_need_not_wait(server):
    first, again = cotrain("retrain", "job.yaml", "--no-wait"), cotrain("retrain", "job.yaml", "--no-wait")
    (run,) = server.runs
    assert f"submitted: {run}" in first.output
    assert f"submitted already: {run}" in again.output


def test_retrain_waits_no_longer_than_it_is_told(server):
    assert "has not ended after 0.05 s; it goes on" in cotrain("retrain", "job.yaml", "--timeout", "0.05", code=2).output


# --- status, logs ---------------------------------------------------------------------------------------------------


def test_status_says_how_each_step_is_doing(server, tmp_path):
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    server.step(run, "prepare", "SUCCEEDED", "pod-1")
    server.step(run, "prepare-driver", "SUCCEEDED")
    server.step(run, "train joint", "RUNNING", "pod-2")
    server.runs[run]["state"] = "RUNNING"
    lines = cotrain("status", run).output.splitlines()
    assert lines[0].endswith(": running")
    assert [line.split()[0] for line in lines[2:]] == ["succeeded", "running"]
    assert lines[3].endswith("train joint")
    assert "no run" not in cotrain("status").output
    assert run in cotrain("status").output


def test_status_of_a_run_that_is_done_says_what_came_of_it(server, tmp_path):
    server.on_run = ends(server, tmp_path / "runs")
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    assert "rating: " in cotrain("status", run).output
    assert "published: " in cotrain("status", run, "--wait").output


def test_a_run_that_does_not_exist_is_told(server):
    for command in ("status", "logs", "cancel"):
        assert "find run 7: HTTP 404" in cotrain(command, "7", code=2).output


def test_logs_are_those_of_all_steps_or_of_some(server):
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    server.step(run, "check", "SUCCEEDED", "pod-1")
    server.step(run, "train joint", "RUNNING", "pod-2")
    server.logs |= {(run, "pod-1"): "fine\n", (run, "pod-2"): "step 1\nste"}
    assert cotrain("logs", run).output == "[check] fine\n[train joint] step 1\n"
    assert cotrain("logs", run, "--step", "train").output == "[train joint] step 1\n"


def test_logs_that_are_followed_lose_and_repeat_no_line(server, monkeypatch):
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    server.step(run, "train joint", "RUNNING", "pod")
    whole = "".join(f"step {n}\n" for n in range(40)) + "the end"

    def more(seconds: float) -> None:
        server.logs[run, "pod"] = whole[: len(server.logs[run, "pod"]) + 37]
        if server.logs[run, "pod"] == whole:
            server.finish(run)

    server.logs[run, "pod"] = ""
    monkeypatch.setattr(remote_commands.time, "sleep", more)
    assert cotrain("logs", run, "-f").output.splitlines() == [f"[train joint] {line}" for line in whole.splitlines()]


# --- schedule -------------------------------------------------------------------------------------------------------


def test_a_schedule_runs_a_document_by_the_clock(server):
    done = cotrain(
        "schedule", "create", "job.yaml", "--cron", "30 2 * * 1-5", "--max-concurrency", "2", "--end", "2030-01-01T00:00:00+01:00"
    )
    ((id, made),) = server.schedules.items()
    assert f"schedule: {id}\n" in done.output
    assert made["trigger"]["cron_schedule"] == {"cron": "0 30 2 * * 1-5", "end_time": "2029-12-31T23:00:00Z"}
    assert (made["no_catchup"], str(made["max_concurrency"]), made["status"]) == (True, "2", "ENABLED")
    assert json.loads(made["runtime_config"]["parameters"]["spec"])["name"] == "tiny"
    listed = cotrain("schedule", "list").output
    assert listed.split() == [id, "enabled", "0", "30", "2", "*", "*", "1-5", "tiny", "tiny"]


def test_a_schedule_can_be_an_interval_that_catches_up_and_waits_to_be_enabled(server):
    cotrain("schedule", "create", "job.yaml", "--every", "6h", "--catch-up", "--disabled", "--name", "often")
    ((id, made),) = server.schedules.items()
    assert int(made["trigger"]["periodic_schedule"]["interval_second"]) == 6 * 3600
    assert (made["no_catchup"], made["status"], made["display_name"]) == (False, "DISABLED", "often")
    assert f"{id} is enabled" in cotrain("schedule", "enable", id).output
    assert server.schedules[id]["status"] == "ENABLED"
    cotrain("schedule", "disable", id)
    assert server.schedules[id]["status"] == "DISABLED"
    cotrain("schedule", "delete", id)
    assert not server.schedules


def test_a_schedule_of_the_same_name_is_replaced(server):
    cotrain("schedule", "create", "job.yaml", "--every", "1d")
    (first,) = server.schedules
    done = cotrain("schedule", "create", "job.yaml", "--every", "2d")
    assert f"replaced: {first}" in done.output
    assert len(server.schedules) == 1
    assert first not in server.schedules


def test_a_document_in_a_store_is_read_anew_by_every_scheduled_run(server, s3_bucket):
    bucket = s3_bucket()
    open_store(bucket).write("job.json", json.dumps(document()).encode())
    cotrain("schedule", "create", f"{bucket}/job.json", "--set", "train.batch=16", "--every", "1d")
    (made,) = server.schedules.values()
    assert made["runtime_config"]["parameters"] | {"root": ""} == {"spec": f"{bucket}/job.json", "root": "", "changes": ["train.batch=16"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs one of --cron and --every"),
        (["--every", "6h", "--cron", "0 0 * * *"], "needs one of --cron and --every"),
        (["--cron", "daily"], "'daily' is no cron expression"),
        (["--cron", "0 0 0 0 * * *"], "is no cron expression"),
        (["--every", "6 hours"], "'6 hours' is no interval"),
        (["--every", "1d", "--start", "tomorrow"], "--start: 'tomorrow' is no time with a zone"),
        (["--every", "1d", "--end", "2030-01-01T00:00:00"], "--end: '2030-01-01T00:00:00' is no time with a zone"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments, says, server):
    done = cotrain("schedule", "create", "job.yaml", *arguments, code=2)
    assert says in done.output
    assert "fix: " in done.output
    assert not server.requests


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_cancel_terminates_the_run_and_says_what_is_left_where_no_cluster_is_known(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    said = cotrain("cancel", run, code=2).output
    assert server.runs[run]["state"] == "CANCELING"
    assert "no cluster is known" in said
    assert f"kubectl -n kubeflow delete trainjobs,jobs -l cotrain.io/run={run}" in said


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kube_server.KubeServer]:
    with kube_server.serving() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(kube_server.kubeconfig(tmp_path, cluster.address)))
        yield cluster


def launched(kube: kube_server.KubeServer, name: str, run: str, *workflows: str, kind: str = "trainjobs") -> None:
    """A training job that steps of these workflows wait for."""
    labels = {"app.kubernetes.io/managed-by": "cotrain", "app.kubernetes.io/component": "training", "cotrain.io/run": run}
    owners = [{"apiVersion": "v1", "kind": "Pod", "name": f"{name}-{w}", "uid": f"uid-of-{name}-{w}"} for w in workflows]
    for w in workflows:
        launching_pod(kube, f"{name}-{w}", w)
        if not kube.get("workflows", w):
            kube.put("workflows", {"metadata": {"name": w}, "spec": {}, "status": {"phase": "Running"}})
    kube.put(kind, {"metadata": {"name": name, "labels": labels, "ownerReferences": owners}})


def test_cancel_deletes_the_jobs_of_the_run_and_leaves_those_of_others(kube, monkeypatch, server):
    with serving(multi_user=True, namespaces=("ns",)) as shared:
        monkeypatch.setenv("KFP_ENDPOINT", shared.url)
        monkeypatch.setenv("KFP_NAMESPACE", "ns")
        cotrain("submit", "job.yaml")
        (run,) = shared.runs
        launched(kube, "mine", run, "wf-1")
        launched(kube, "plain", run, "wf-1", kind="jobs")
        launched(kube, "shared", run, "wf-1", "wf-2")
        launched(kube, "other", "another-run", "wf-1")
        kube.put("workflows", kube.get("workflows", "wf-1") | {"spec": {"activeDeadlineSeconds": 0}})
        monkeypatch.setattr(cancelling, "PATIENCE_S", 0.2)
        said = cotrain("cancel", run).output
    assert shared.runs[run]["state"] == "CANCELING"
    assert "deleted trainjob/mine: workflow wf-1 was terminated" in said
    assert "deleted job/plain: workflow wf-1 was terminated" in said
    assert "left trainjob/shared: another run waits for it" in said
    assert {job["metadata"]["name"] for resource in ("trainjobs", "jobs") for job in kube.of(resource)} == {"shared", "other"}


def test_cancel_waits_until_its_word_has_reached_the_workflow(kube, server, monkeypatch):
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    launched(kube, "mine", run, "wf-1")

    def later(seconds: float) -> None:
        kube.put("workflows", kube.get("workflows", "wf-1") | {"spec": {"activeDeadlineSeconds": 0}})

    monkeypatch.setattr(cancelling.time, "sleep", later)
    assert "deleted trainjob/mine" in cotrain("cancel", run, "--jobs-in", "ns").output
    assert not kube.of("trainjobs")


def test_a_run_that_has_ended_has_its_jobs_deleted_all_the_same(kube, server):
    cotrain("submit", "job.yaml")
    (run,) = server.runs
    server.finish(run, "FAILED")
    launched(kube, "mine", run, "wf-1")
    kube.put("workflows", kube.get("workflows", "wf-1") | {"status": {"phase": "Failed"}})
    said = cotrain("cancel", run, "--jobs-in", "ns").output
    assert f"{run} has ended before, as failed" in said
    assert "deleted trainjob/mine" in said
