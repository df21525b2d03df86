"""What a cluster's owners ask for: training waits in their queue, and its pods are restricted."""

from __future__ import annotations

import json

import pytest
from cluster_place import RESTRICTED, until
from kubernetes.client import ApiException

from components.manifests import render
from components.target import Target


@pytest.fixture
def queue(there, kueue):
    """A queue that is on hold, and a way to let it go."""
    name = f"cotrain-test-{there.settings.run}"
    (version,) = [
        found["preferredVersion"]["groupVersion"] for found in there.send("GET", "/apis")["groups"] if found["name"] == "kueue.x-k8s.io"
    ]
    quotas = [{"name": resource, "nominalQuota": amount} for resource, amount in (("cpu", "1000"), ("memory", "1000Gi"))]
    things = [
        {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": name}},
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "stopPolicy": "Hold",
                "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}],
            },
        },
        {"apiVersion": version, "kind": "LocalQueue", "metadata": {"name": name}, "spec": {"clusterQueue": name}},
    ]
    try:
        for thing in things:
            there.create(thing)
        path = f"/apis/{version}/clusterqueues/{name}"
        yield (
            name,
            lambda: there.api.call_api(
                path,
                "PATCH",
                header_params={"Content-Type": "application/merge-patch+json"},
                body={"spec": {"stopPolicy": "None"}},
                auth_settings=["BearerToken"],
                _preload_content=False,
            ),
        )
    finally:
        for thing in reversed(things):
            there.delete(thing)


def test_time_in_a_queue_is_said_and_is_no_run_time(there, launcher, queue):
    name, let_go = queue
    request = there.request(launcher, queue=name, cpus_per_node=0.1)
    launched = there.launch(request)

    def queued():
        return [event for event in launched.events("job_state") if event["state"] == "queued"]

    (said, *_) = until("it says that it is queued", queued, 120, launched)
    assert said["waiting_for"]
    assert said["run_seconds"] == 0
    assert there.job(request)["spec"]["suspend"] is True
    assert not there.pods(request)
    let_go()
    found = launched.ended(there.settings.wait_s)
    assert found["code"] == 0, found


def test_its_pods_are_let_into_a_restricted_namespace(there):
    name = f"{there.namespace}-restricted"
    there.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {RESTRICTED: "restricted"}}})
    try:
        request = there.request("job")
        _, job = render(request, Target(there.root, namespace=name, image=there.settings.image), "job")
        template = job["spec"]["template"]
        spec = {**template["spec"], "serviceAccountName": "default"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "training", **template["metadata"]}, "spec": spec}
        path = f"/api/v1/namespaces/{name}/pods"

        def create(thing):
            return there.send("POST", path, thing, dryRun="All", fieldValidation="Strict")

        until("the namespace has its service account", lambda: there.send("GET", f"/api/v1/namespaces/{name}/serviceaccounts")["items"], 30)
        assert create(pod)["kind"] == "Pod"
        loose = json.loads(json.dumps(pod))
        del loose["spec"]["containers"][0]["securityContext"]["capabilities"]
        with pytest.raises(ApiException) as refused:
            create(loose)
        assert refused.value.status == 403
    finally:
        there.send("DELETE", f"/api/v1/namespaces/{name}")
