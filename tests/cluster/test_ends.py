"""How training on a real cluster ends when it is not to go on: nothing is left behind, and the cause is the one a person would give."""

from __future__ import annotations

import json
import signal

from cluster_place import until

LAUNCH = "import sys; from components.launch import train; from trainer.requests import read_request; train(sys.argv[1], read_request(*sys.argv[1:3]))"


def test_a_launcher_that_is_asked_to_stop_takes_its_job_back(there, launcher):
    request = there.request(launcher, steps=10**6)
    launched = there.launch(request)
    there.running(request)
    launched.process.send_signal(signal.SIGTERM)
    found = launched.ended(120)
    assert found["error"] == "Stopped", found
    until("the job is gone", lambda: there.job(request) is None, 60)
    until("its pods are gone", lambda: not there.pods(request), 120)


def test_a_job_goes_with_the_pod_that_launched_it(there, launcher):
    """The launching pod is killed without notice, as when its machine is lost; its service account has the role of k8s/base."""
    request = there.request(launcher, steps=10**6)
    name = f"launcher-{launcher}-{there.settings.run}"
    passed = [{"name": key, "value": there.environment[key]} for key in ("COTRAIN_IMAGE", "COTRAIN_POD", "COTRAIN_STORE_SECRET")]
    own = {"COTRAIN_NAMESPACE": "metadata.namespace", "COTRAIN_POD_NAME": "metadata.name", "COTRAIN_POD_UID": "metadata.uid"}
    tmp = {"name": "tmp", "mountPath": "/tmp"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": "cotrain-launcher",
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "launcher",
                    "image": there.settings.image,
                    "command": ["python3", "-c", LAUNCH, there.root, request["key"]],
                    "env": [
                        *passed,
                        *({"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in own.items()),
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "USER", "value": "cotrain"},
                        *there.pod["env"],
                    ],
                    "envFrom": [{kind: {"name": "cotrain-store", "optional": True}} for kind in ("configMapRef", "secretRef")],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [*there.pod["volumeMounts"], tmp],
                }
            ],
            "volumes": [*there.pod["volumes"], {"name": "tmp", "emptyDir": {}}],
        },
    }
    there.create(pod)
    try:
        until("it has launched", lambda: there.job(request), there.settings.wait_s)
        (owner,) = there.job(request)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Pod", name)
        there.running(request)
    finally:
        there.send("DELETE", f"/api/v1/namespaces/{there.namespace}/pods/{name}", {"gracePeriodSeconds": 0})
    until("the job is gone", lambda: there.job(request) is None, 180)
    until("its pods are gone", lambda: not there.pods(request), 180)


def test_an_image_that_is_not_there_is_named(there, launcher):
    # the runtime's image is there: of a TrainJob only the container that trains asks for the other one
    wanted = "registry.invalid/there-is-no-such-image:1"
    launched = there.launch(there.request(launcher), COTRAIN_IMAGE=wanted)
    until(
        "it says what it waits for",
        lambda: [line for line in launched.lines if wanted in line or "ImagePull" in line],
        there.settings.wait_s,
    )
    launched.process.send_signal(signal.SIGTERM)
    launched.ended(120)


def test_memory_that_runs_out_is_named_with_the_rank(there, launcher):
    found = there.train(there.request(launcher, memory_gib_per_node=0.06, max_restarts=0))
    assert found["code"] != 0
    assert "OOMKilled" in json.dumps(found) or "memory" in found["message"], found


def test_what_the_user_can_put_right_is_not_tried_again(there, launcher):
    """The data is not where the request says: a rank says so, and nothing is started a second time."""
    from trainer.stores import open_store

    request = there.request(launcher)
    name = f"requests/train/{request['key']}.json"
    blind = {**request, "data": {"table": {"key": "0" * 24, "digest": "0"}}}
    open_store(there.root).write(name, json.dumps(blind).encode())
    launched = there.launch(request)
    found = launched.ended(there.settings.wait_s)
    assert found["code"] == 2, found
    assert "is not prepared" in found["message"]
