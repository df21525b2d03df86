"""The sweep deletes training jobs that nobody waits for, and nothing else."""

from __future__ import annotations

import time

import pytest
from cluster_jobs import connect, launching_pod, request, target
from kube_server import serving, stamp

from components.manifests import render
from components.sweep import sweep

AGE_S = 3600


@pytest.fixture
def kube():
    with serving() as server:
        yield server


@pytest.fixture
def cluster(kube, tmp_path, monkeypatch):
    return connect(kube, tmp_path, monkeypatch)


def job(kube, tmp_path, owner="step-1", workflow="run-1", age_s=AGE_S, kind="trainjob", key="a" * 24, **extra):
    made = render(request(key, launcher=kind), target(tmp_path, owner), kind)[-1]
    made["metadata"]["creationTimestamp"] = stamp(time.time() - age_s)
    if workflow:
        made["metadata"]["annotations"]["cotrain.io/workflow"] = workflow
    return kube.put(f"{kind}s", {**made, **extra})


def workflow(kube, name="run-1", phase="Running", **spec):
    kube.put("workflows", {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase}})


OVER = {
    "finished": lambda k: workflow(k, phase="Succeeded"),
    "failed": lambda k: workflow(k, phase="Failed"),
    "terminated": lambda k: workflow(k, activeDeadlineSeconds=0),
    "shut down": lambda k: workflow(k, shutdown="Terminate"),
    "gone": lambda k: None,
}


@pytest.mark.parametrize("kind", ["trainjob", "job"])
@pytest.mark.parametrize("how", OVER)
def test_a_job_goes_when_its_run_is(how, kind, kube, cluster, tmp_path):
    OVER[how](kube)
    launching_pod(kube, "step-1", workflow="run-1", phase="Running" if how == "terminated" else "Failed")
    there = job(kube, tmp_path, kind=kind)
    (found,) = sweep(cluster, dry_run=True)
    assert how in found.why or how in ("finished", "shut down")
    assert kube.deleted == []
    sweep(cluster)
    assert [(resource, name) for resource, name, _ in kube.deleted] == [(f"{kind}s", there["metadata"]["name"])]


def alive(kube):
    workflow(kube)
    launching_pod(kube, "step-1")


KEPT = {
    "its step runs": (alive, {}),
    "its step failed and may be tried again": (lambda k: (workflow(k), launching_pod(k, "step-1", phase="Failed")), {}),
    "its pod is gone and the workflow goes on": (lambda k: workflow(k), {}),
    "another run waits for it too": (lambda k: workflow(k, "run-2"), {"workflow": "run-1,run-2"}),
    "it is young": (lambda k: None, {"age_s": 10}),
    "somebody launched it by hand": (lambda k: None, {"owner": None, "workflow": None}),
    "we may not look at workflows": (lambda k: k.denied.add(("get", "workflows")), {}),
}


@pytest.mark.parametrize("why", KEPT)
def test_a_job_is_kept_while_somebody_may_wait_for_it(why, kube, cluster, tmp_path):
    prepare, which = KEPT[why]
    prepare(kube)
    job(kube, tmp_path, **which)
    assert sweep(cluster) == []
    assert len(kube.of("trainjobs")) == 1


def test_a_job_without_our_label_is_never_touched(kube, cluster, tmp_path):
    there = job(kube, tmp_path)
    del there["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    kube.put("trainjobs", there)
    assert sweep(cluster) == []


def test_a_launching_pod_outside_of_any_workflow_counts_for_itself(kube, cluster, tmp_path):
    launching_pod(kube, "step-1", workflow="", phase="Succeeded")
    job(kube, tmp_path, workflow=None)
    (found,) = sweep(cluster)
    assert "launching pod step-1 has succeeded" in found.why


def test_a_job_that_was_adopted_meanwhile_is_kept(kube, cluster, tmp_path, monkeypatch):
    there = job(kube, tmp_path)
    seen = cluster.list

    def adopted(resource, **selectors):
        found = seen(resource, **selectors)
        if resource == "trainjobs":
            kube.put("trainjobs", there)  # somebody writes to it after we have read it
        return found

    monkeypatch.setattr(cluster, "list", adopted)
    assert sweep(cluster) == []
    assert len(kube.of("trainjobs")) == 1


def test_clusters_without_the_trainer_are_swept_too(kube, cluster, tmp_path):
    kube.absent.add("trainjobs")
    job(kube, tmp_path, kind="job")
    assert len(sweep(cluster)) == 1


def command(*arguments):
    from click.testing import CliRunner

    from pipelines.cli import main

    return CliRunner().invoke(main, ["sweep", *arguments])


def test_the_command_says_what_it_would_delete_and_what_it_did(kube, cluster, tmp_path):
    name = job(kube, tmp_path)["metadata"]["name"]
    dry = command("--namespace", "ns", "--dry-run")
    assert f"would delete ns/trainjob/{name}: launching pod step-1 is gone; workflow run-1 is gone" in dry.output
    assert kube.deleted == []
    assert f"deleted ns/trainjob/{name}" in command("--namespace", "ns").output
    assert command("--namespace", "ns").output == "ns: 0 training jobs that nobody waits for\n"


def test_the_command_says_which_right_it_lacks(kube, cluster):
    kube.denied.add(("list", "trainjobs"))
    result = command("--namespace", "ns")
    assert result.exit_code == 2
    assert 'cannot list resource "trainjobs"' in result.output and "kubectl auth can-i --list -n ns" in result.output
