"""Launching steps as real processes: stopped, killed, tried again; and the sweep that finds what a killed one left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_jobs import furnish, launching_pod, player
from kube_server import kubeconfig, serving

from components.cluster import Cluster
from components.sweep import sweep

TESTS = Path(__file__).parents[1]


@pytest.fixture
def kube():
    with serving() as server:
        furnish(server)
        yield server


@contextmanager
def step(kube, tmp_path, pod):
    """A launching step; killed at the end if it still lives."""
    launching_pod(kube, pod, workflow="run-1")
    environment = os.environ | {"KUBECONFIG": str(kubeconfig(tmp_path, kube.address)), "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, str(TESTS / "cluster_launcher.py"), str(tmp_path / "root"), pod]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def watched(kube):
    return any("/trainjobs?" in path and "watch=true" in path for _, path in list(kube.requests))


def test_sigterm_to_the_step_deletes_the_job(kube, tmp_path):
    with step(kube, tmp_path, "step-1") as process:
        until(lambda: watched(kube))
        assert len(kube.of("trainjobs")) == 1
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
    assert kube.of("trainjobs") == []
    assert '"event": "job_deleted"' in output


def test_what_a_killed_step_leaves_is_adopted_by_its_retry_and_else_swept(kube, tmp_path):
    with step(kube, tmp_path, "step-1") as process:
        until(lambda: watched(kube))
        process.kill()  # out of memory, say
        process.wait()
    (job,) = kube.of("trainjobs")
    kube.status("pods", "step-1", phase="Failed")
    cluster = _cluster(kube, tmp_path)

    # the workflow runs on: it may try the step again
    kube.put("workflows", {"metadata": {"name": "run-1"}, "spec": {}, "status": {"phase": "Running"}})
    assert sweep(cluster, min_age_s=0) == []

    kube.requests.clear()
    with step(kube, tmp_path, "step-2") as retry:
        until(lambda: watched(kube))
        threading.Thread(target=player(kube, "complete", tmp_path / "root", "a" * 24), args=(job,), daemon=True).start()
        output, _ = retry.communicate(timeout=60)
        assert retry.returncode == 0, output
    assert '"event": "job_adopted"' in output and "step 4 rank 0\n" in output
    assert len(kube.created) == 1

    # had nobody come back, and the run been terminated:
    kube.status("pods", "step-2", phase="Failed")
    kube.put("workflows", {"metadata": {"name": "run-1"}, "spec": {"activeDeadlineSeconds": 0}, "status": {"phase": "Running"}})
    (orphan,) = sweep(cluster, dry_run=True, min_age_s=0)
    assert "workflow run-1 was terminated" in str(orphan)
    assert len(kube.of("trainjobs")) == 1
    assert len(sweep(cluster, min_age_s=0)) == 1
    assert kube.of("trainjobs") == []


def _cluster(kube, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, kube.address)))
        return Cluster.connect("ns", 5)
