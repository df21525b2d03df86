"""Training on a real cluster: by either launcher, once, and through the loss of a pod."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cluster_place import until


def test_the_runtime_is_there(there, trainjob):
    runtime = there.cluster.get("trainingruntimes", "cotrain")
    assert runtime["spec"]["mlPolicy"]["torch"]["envInjection"]["targets"][0]["containerNames"] == ["preflight"]


def test_two_nodes_train_and_the_second_time_nothing_is_launched(there, launcher):
    request = there.request(launcher)
    found = there.train(request)
    assert found["code"] == 0, found
    result = json.loads((Path(found["folder"]) / "result.json").read_text())
    assert (result["ranks"], result["steps"], result["key"]) == (2, {"joint": 40}, request["key"])

    again = there.launch(request)
    assert again.ended(60)["reused"] is True
    assert not again.events("job_created")


def test_two_launchers_of_one_key_train_once(there, launcher):
    request = there.request(launcher, steps=400)
    one, two = there.launch(request), there.launch(request)
    assert one.ended(there.settings.wait_s)["code"] == two.ended(there.settings.wait_s)["code"] == 0
    assert len(one.events("job_created") + two.events("job_created")) == 1
    assert len(one.events("job_adopted") + two.events("job_adopted")) <= 1


def test_a_run_goes_on_when_a_pod_is_deleted(there, launcher):
    request = there.request(launcher, steps=6000)
    launched = there.launch(request)
    pods = there.running(request)
    until("the first checkpoint", lambda: launched.events("checkpoint"), there.settings.wait_s)
    second = next(pod for pod in pods if pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == "1")
    there.cluster.delete("pods", second["metadata"]["name"])
    found = launched.ended(there.settings.wait_s)
    assert found["code"] == 0, found
    (first, *_) = launched.events("resumed")
    assert first["step"] >= 100
    result = json.loads((Path(found["folder"]) / "result.json").read_text())
    assert result["steps"] == {"joint": 6000}


def test_a_run_that_is_suspended_waits_and_goes_on_from_its_checkpoint(there, launcher):
    request = there.request(launcher, steps=3000)
    launched = there.launch(request)
    there.running(request)
    until("the first checkpoint", lambda: launched.events("checkpoint"), there.settings.wait_s, launched)
    name = there.job(request)["metadata"]["name"]
    there.cluster.patch(f"{launcher}s", name, {"spec": {"suspend": True}})
    until("it says so", lambda: [event for event in launched.events("job_state") if event["state"] == "queued"], 120, launched)
    until("its pods are gone", lambda: not there.pods(request), 120, launched)
    time.sleep(10)
    there.cluster.patch(f"{launcher}s", name, {"spec": {"suspend": False}})
    found = launched.ended(there.settings.wait_s)
    assert found["code"] == 0, found
    (first, *_) = launched.events("resumed")
    assert first["step"] >= 100
    (ended,) = launched.events("job_ended")
    assert ended["queue_seconds"] >= 10
    assert ended["restarts"] == 0
