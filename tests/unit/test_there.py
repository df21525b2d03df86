"""A training run as a job of a cluster: created once, adopted by whoever comes second, checked before, taken away by the last."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from cluster_jobs import connect, furnish, launching_pod, leave_result, player, request, target
from command import document as plain_document
from command import write, write_csv
from finished import finished
from kube_server import kubeconfig, serving, stamp
from training_inputs import document

from components import follow, there, watching
from components.cluster import Refused
from components.launch import look
from components.manifests import job_name, render
from components.target import named
from pipelines.cli import main
from trainer.errors import LaunchError, Stopped, UserError
from trainer.flow import keep_spec

KEY = "a" * 24


@pytest.fixture
def kube(monkeypatch):
    monkeypatch.setattr(follow, "_TICK_S", 0.1)
    monkeypatch.setattr(there, "_PARTING_S", 0.2)
    monkeypatch.setattr(there, "_POLL_S", 0.05)
    monkeypatch.setattr(watching, "PAUSE_S", 0.02)
    monkeypatch.setattr("components.cluster.PAUSE_S", 0.02)
    with serving() as server:
        furnish(server)
        yield server


@pytest.fixture
def launch(kube, tmp_path, monkeypatch):
    """Launch as a pod, or as nobody in particular."""
    cluster = connect(kube, tmp_path, monkeypatch)

    def call(owner=None, asked=None):
        asked = asked or request()
        return there.train(cluster, str(tmp_path / "root"), asked, target(tmp_path / "root", owner))

    return call


def existing(kube, tmp_path, owner=None, key=KEY, **extra):
    """The job, as an earlier launcher left it there."""
    job = render(request(key), target(tmp_path / "root", owner), "trainjob")[0]
    job["metadata"]["name"] = job_name(request(), str(tmp_path / "root"))
    return kube.put("trainjobs", {**job, **extra})


def complete(kube, tmp_path):
    """A cluster that trains at once."""

    def play(job):
        leave_result(tmp_path / "root", KEY)
        kube.status(f"{job['kind'].lower()}s", job["metadata"]["name"], conditions=[{"type": "Complete", "status": "True"}])

    return play


def test_what_was_trained_is_not_trained_again(kube, launch, tmp_path):
    leave_result(tmp_path / "root", KEY)
    assert launch().reused
    assert kube.created == []


def test_a_job_is_created_by_its_launching_pod_and_says_who_waits_for_it(kube, launch, tmp_path):
    kube.controller = complete(kube, tmp_path)
    launching_pod(kube, "step-1", workflow="run-7")
    launch("step-1")
    (job,) = kube.created
    assert [(owner["kind"], owner["uid"]) for owner in job["metadata"]["ownerReferences"]] == [("Pod", "uid-of-step-1")]
    assert job["metadata"]["annotations"]["cotrain.io/workflow"] == "run-7"
    assert job["spec"]["activeDeadlineSeconds"] > 0


def test_a_retry_adopts_the_job_of_its_key_and_trains_once(kube, launch, tmp_path):
    first = existing(kube, tmp_path, "step-1")
    launching_pod(kube, "step-2", workflow="run-8")
    threading.Thread(target=player(kube, "complete", tmp_path / "root", KEY), args=(first,), daemon=True).start()
    assert launch("step-2").json("result.json") == {}
    assert kube.created == []
    owners = kube.get("trainjobs", first["metadata"]["name"])["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["step-1", "step-2"]


def test_two_launchers_at_once_train_once(kube, launch, tmp_path):
    kube.controller = player(kube, "complete", tmp_path / "root", KEY)
    for name in ("step-1", "step-2"):
        launching_pod(kube, name)
    results = []
    threads = [threading.Thread(target=lambda name=name: results.append(launch(name))) for name in ("step-1", "step-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.key for result in results] == [KEY, KEY]
    assert len(kube.created) == 1


def test_a_create_whose_answer_is_lost_is_found_again(kube, launch, tmp_path):
    """The server has created it and could not say so: the next try gets 409, and adopts."""
    kube.controller = player(kube, "complete", tmp_path / "root", KEY)
    asked = []
    kube.refuse = lambda resource, thing: (
        asked.append(kube.put(resource, thing)) or (503, "ServiceUnavailable", "etcd") if not asked else None
    )
    threading.Thread(target=lambda: (_until(lambda: asked), kube.controller(asked[0])), daemon=True).start()
    assert launch().key == KEY
    assert kube.created == [] and len(kube.of("trainjobs")) == 1


def _until(true, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_job_of_another_key_is_never_adopted(kube, launch, tmp_path):
    existing(kube, tmp_path, key="b" * 24)
    with pytest.raises(LaunchError, match=r"exists and trains something else \(key b+\)"):
        launch()
    assert kube.created == [] and kube.deleted == []


def test_something_that_only_has_its_name_is_left_alone(kube, launch, tmp_path):
    kube.put("trainjobs", {"metadata": {"name": job_name(request(), str(tmp_path / "root"))}, "spec": {}})
    with pytest.raises(LaunchError, match="exists and is not ours"):
        launch()
    assert kube.deleted == []


def test_a_job_that_failed_makes_way_for_a_new_one(kube, launch, tmp_path):
    failed = existing(kube, tmp_path, status={"conditions": [{"type": "Failed", "status": "True", "reason": "FailedJobs"}]})
    kube.controller = complete(kube, tmp_path)
    launch()
    assert kube.deleted == [("trainjobs", failed["metadata"]["name"], "Background")]
    assert len(kube.created) == 1


def test_a_job_that_ends_while_we_come_is_not_trained_again(kube, launch, tmp_path, monkeypatch):
    """The result was not there when we looked first; when we come to its job, that has just ended."""
    looked = there.faults

    def meanwhile(*arguments):
        existing(kube, tmp_path, status={"conditions": [{"type": "Complete", "status": "True"}]})
        leave_result(tmp_path / "root", KEY)
        return looked(*arguments)

    monkeypatch.setattr(there, "faults", meanwhile)
    assert launch().key == KEY
    assert kube.created == [] and kube.deleted == []


def test_nothing_is_created_while_pods_of_an_earlier_job_still_live(kube, launch, tmp_path):
    kube.controller = complete(kube, tmp_path)
    name = job_name(request(), str(tmp_path / "root"))
    kube.put("pods", {"metadata": {"name": "old", "labels": {"jobset.sigs.k8s.io/jobset-name": name}}, "status": {"phase": "Running"}})
    thread = threading.Thread(target=launch)
    thread.start()
    _until(lambda: sum("/pods?labelSelector" in path for _, path in kube.requests) > 1)
    assert kube.created == []
    kube.remove("pods", "old")
    thread.join(60)
    assert len(kube.created) == 1


def test_a_plain_job_goes_with_its_service_and_the_foreground(kube, launch, tmp_path):
    asked = request(launcher="job")
    kube.controller = complete(kube, tmp_path)
    launch(asked=asked)
    (service,) = kube.of("services")
    (job,) = kube.of("jobs")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    there.remove(connect_again(kube, tmp_path), job)
    assert kube.deleted[-1] == ("jobs", job["metadata"]["name"], "Foreground")
    assert kube.of("services") == []


def connect_again(kube, tmp_path):
    from components.cluster import Cluster

    return Cluster.connect("ns", 5)


def test_a_server_that_is_down_throttles_or_cuts_is_waited_for(kube, launch, tmp_path):
    kube.controller = complete(kube, tmp_path)
    faults = [
        kube.fail("POST", r"/trainjobs$", 503, 1),
        kube.fail("POST", r"/trainjobs$", 429, 1, Retry_After="1"),
        kube.fail("GET", r"/trainjobs/", 0, 2),
        kube.fail("GET", r"/trainjobs\?watch", 500, 1),
        kube.fail("GET", r"/pods", 504, 2),
    ]
    assert launch().key == KEY
    assert all(fault.seen for fault in faults)
    assert len(kube.created) == 1


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_api_server_that_restarts_is_survived(forgotten, kube, launch, tmp_path):
    """While it is down the job goes on; once it is back, it may not remember what was said before."""

    def play(job):
        _until(lambda: any("/trainjobs?" in path and "watch=true" in path for _, path in kube.requests))
        kube.down()
        leave_result(tmp_path / "root", KEY)
        kube.status("trainjobs", job["metadata"]["name"], conditions=[{"type": "Complete", "status": "True"}])
        if forgotten:
            kube.forget()
        time.sleep(0.3)
        kube.up(int(kube.address.rpartition(":")[2]))

    kube.controller = play
    assert launch().key == KEY
    assert len(kube.created) == 1


def test_a_server_that_does_not_know_its_roles_yet_is_asked_again(kube, tmp_path, monkeypatch):
    """One that has just started refuses for a moment whatever it is asked. What it has allowed before is not believed to be refused."""
    first = kube.fail("GET", r"^/version$", 403, 2)
    cluster = connect(kube, tmp_path, monkeypatch)
    assert first.seen == 2
    fault = kube.fail("GET", r"/pods", 403, 10**6)
    with pytest.raises(Refused):
        cluster.list("pods")
    assert fault.seen == 1
    kube.faults.clear()
    told = watching.changes(cluster.objects("pods"), threading.Event())
    assert next(told)["type"] == watching.LISTED
    launching_pod(kube, "one")
    assert next(told)["object"]["metadata"]["name"] == "one"  # so it may be watched
    kube.down()
    fault = kube.fail("GET", r"/pods\?watch", 403, 3)
    launching_pod(kube, "two")
    kube.up(int(kube.address.rpartition(":")[2]))
    assert next(told)["object"]["metadata"]["name"] == "two"
    assert fault.seen == 3


def test_a_right_that_does_not_come_back_is_believed(kube, tmp_path, monkeypatch):
    cluster = connect(kube, tmp_path, monkeypatch)
    assert cluster.get("trainingruntimes", "cotrain")
    monkeypatch.setattr("components.cluster._ROLES_S", 0.05)
    fault = kube.fail("GET", r"/trainingruntimes/", 403, 10**6)
    with pytest.raises(Refused):
        cluster.get("trainingruntimes", "cotrain")
    assert fault.seen > 1


def test_a_job_goes_with_the_last_pod_that_launched_it(kube, launch, tmp_path):
    """Owner references: the cluster collects what no launching pod is left of."""
    job = existing(kube, tmp_path, "step-1")
    for name in ("step-1", "step-2"):
        launching_pod(kube, name)
    kube.controller = None
    threading.Thread(target=player(kube, "complete", tmp_path / "root", KEY), args=(job,), daemon=True).start()
    launch("step-2")
    kube.remove("pods", "step-1")
    assert len(kube.of("trainjobs")) == 1
    kube.remove("pods", "step-2")
    assert kube.of("trainjobs") == []


def test_a_watch_that_comes_too_late_lists_anew(kube, launch, tmp_path):
    """410: the server has forgotten where the watch was; what happened meanwhile is found by a list."""

    def play(job):
        name = job["metadata"]["name"]
        _until(lambda: any("/trainjobs?" in path and "watch=true" in path for _, path in kube.requests))
        leave_result(tmp_path / "root", KEY)
        with kube.changed:
            kube.status("trainjobs", name, conditions=[{"type": "Complete", "status": "True"}])
            kube.forget()

    kube.controller = play
    assert launch().key == KEY
    lists = [path for method, path in kube.requests if "/trainjobs?" in path and "watch" not in path]
    assert len(lists) >= 2


class Asked:
    """Asks for a stop as soon as the job is watched, as SIGTERM does to the step that launches."""

    def __init__(self, kube, monkeypatch):
        original = follow._next

        def stopped(events):
            if any("watch=true" in path for _, path in kube.requests):
                raise Stopped("asked to stop")
            yield from original(events)

        monkeypatch.setattr(follow, "_next", stopped)


def test_a_launcher_that_is_stopped_deletes_what_it_launched(kube, launch, monkeypatch):
    Asked(kube, monkeypatch)
    launching_pod(kube, "step-1")
    with pytest.raises(Stopped):
        launch("step-1")
    assert kube.of("trainjobs") == []
    assert [(resource, policy) for resource, _, policy in kube.deleted] == [("trainjobs", "Background")]


@pytest.mark.parametrize(("phase", "left"), [("Running", True), ("Failed", False)])
def test_it_leaves_what_another_launcher_that_lives_waits_for(phase, left, kube, launch, tmp_path, monkeypatch):
    existing(kube, tmp_path, "other")
    launching_pod(kube, "other", phase=phase)
    launching_pod(kube, "step-1")
    Asked(kube, monkeypatch)
    with pytest.raises(Stopped):
        launch("step-1")
    assert bool(kube.of("trainjobs")) is left
    if left:
        assert [owner["name"] for owner in kube.of("trainjobs")[0]["metadata"]["ownerReferences"]] == ["other"]


def test_it_leaves_what_somebody_has_launched_by_hand(kube, launch, tmp_path, monkeypatch):
    existing(kube, tmp_path)
    launching_pod(kube, "step-1")
    Asked(kube, monkeypatch)
    with pytest.raises(Stopped):
        launch("step-1")
    assert len(kube.of("trainjobs")) == 1 and kube.deleted == []


def test_what_is_launched_by_hand_goes_with_a_ctrl_c(kube, launch, monkeypatch):
    Asked(kube, monkeypatch)
    with pytest.raises(Stopped):
        launch()
    assert kube.of("trainjobs") == []


def test_a_job_that_can_not_be_watched_is_not_left_running(kube, launch):
    """The right to watch is asked for beforehand; here it is taken away as soon as the job is there."""
    kube.refuse = lambda resource, thing: kube.denied.add(("watch", "trainjobs"))
    with pytest.raises(LaunchError, match="we may not watch the job"):
        launch()
    assert kube.of("trainjobs") == []


def test_a_job_that_runs_longer_than_it_may_is_ended_and_time_without_room_is_not_counted(kube, launch):
    """By who follows it: a controller would count from the moment that the job may have pods."""
    deadline_s, waited_s = 1.0, 2.0

    def pods(job, *conditions, **state):
        for index in range(2):
            labels = {"jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"], "batch.kubernetes.io/job-completion-index": str(index)}
            status = {"conditions": list(conditions), **state}
            kube.put("pods", {"metadata": {"name": f"{job['metadata']['name']}-node-0-{index}", "labels": labels}, "status": status})

    began = []

    def play(job):
        assert job["spec"]["activeDeadlineSeconds"] > 7 * 86400
        pods(job, {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}, phase="Pending")
        time.sleep(waited_s)
        assert not kube.deleted
        began.append(time.time())
        running = [{"name": "node", "state": {"running": {"startedAt": stamp(began[0])}}}]
        pods(job, phase="Running", containerStatuses=running)

    kube.controller = play
    with pytest.raises(LaunchError, match="ran for more than 1 s") as caught:
        launch(asked=request(deadline_hours=deadline_s / 3600))
    assert caught.value.final
    assert time.time() - began[0] > deadline_s
    assert kube.deleted


def test_a_job_that_somebody_deletes_is_a_stop(kube, launch):
    def play(job):
        _until(lambda: any("/trainjobs?" in path and "watch=true" in path for _, path in kube.requests))
        kube.remove("trainjobs", job["metadata"]["name"])

    kube.controller = play
    with pytest.raises(Stopped, match="was deleted while it was waiting"):
        launch()


def test_a_job_that_is_deleted_before_anybody_looks_is_a_stop_too(kube, launch):
    kube.controller = lambda job: kube.remove("trainjobs", job["metadata"]["name"])
    with pytest.raises(Stopped, match="was deleted"):
        launch()


def node(name, **allocatable):
    return {"metadata": {"name": name, "namespace": ""}, "status": {"allocatable": {"cpu": "8", "memory": "32Gi", **allocatable}}}


LACKS = {
    "no right": (
        lambda k: k.denied.add(("create", "trainjobs")),
        {},
        "we may not create trainjobs",
        "kubectl auth can-i create trainjobs -n ns",
    ),
    "no right to pods": (lambda k: k.denied.add(("watch", "pods")), {}, "we may not watch pods", "kubectl auth can-i watch pods -n ns"),
    "no runtime": (
        lambda k: k.remove("trainingruntimes", "cotrain"),
        {},
        "has no TrainingRuntime 'cotrain'",
        "kubectl get trainingruntimes -n ns",
    ),
    "no trainer": (lambda k: k.absent.add("trainingruntimes"), {}, "has no Kubeflow Trainer", "launcher: job"),
    "no account": (
        lambda k: k.remove("serviceaccounts", "cotrain-training"),
        {},
        "has no ServiceAccount 'cotrain-training'",
        "kubectl get serviceaccounts cotrain-training -n ns",
    ),
    "no secret": (lambda k: None, {"target": {"store_secret": "s3"}}, "has no Secret 's3'", "kubectl get secrets s3 -n ns"),
    "no pull secret": (
        lambda k: None,
        {"target": {"image_pull_secrets": ("reg",)}},
        "has no Secret 'reg'",
        "kubectl get secrets reg -n ns",
    ),
    "no queue": (lambda k: None, {"queue": "fast"}, "has no LocalQueue 'fast'", "did you mean 'lq'|known: lq"),
    "no Kueue": (lambda k: k.absent.add("localqueues"), {"queue": "lq"}, "the cluster has no Kueue", "leave queue out"),
    "quota of the queue": (
        lambda k: k.put(
            "clusterqueues",
            {
                "metadata": {"name": "cq", "namespace": ""},
                "spec": {"resourceGroups": [{"flavors": [{"name": "f", "resources": [{"name": "cpu", "nominalQuota": "3"}]}]}]},
            },
        ),
        {"queue": "lq", "cpus_per_node": 2},
        "asks for 4 cpu in all; ClusterQueue cq has 3",
        "kubectl describe clusterqueue cq",
    ),
    "quota of the namespace": (
        lambda k: k.put("resourcequotas", {"metadata": {"name": "q"}, "spec": {}, "status": {"hard": {"requests.memory": "4Gi"}}}),
        {"memory_gib_per_node": 3},
        "asks for 6Gi memory in all; the quota 'q' of the namespace is 4Gi",
        "kubectl describe resourcequota -n ns",
    ),
    "quota of limits": (
        lambda k: k.put(
            "resourcequotas", {"metadata": {"name": "q"}, "spec": {}, "status": {"hard": {"memory": "8Gi", "limits.memory": "4Gi"}}}
        ),
        {"memory_gib_per_node": 3},
        "asks for 6Gi memory in all; the quota 'q' of the namespace is 4Gi",
        "kubectl describe resourcequota -n ns",
    ),
    "no such node": (
        lambda k: k.put("nodes", node("n1")),
        {"gpus_per_node": 64},
        "asks for 64 nvidia.com/gpu per node; the largest node has 0",
        "kubectl get nodes",
    ),
    "too few nodes": (
        lambda k: [k.put("nodes", node(f"n{n}", **{"nvidia.com/gpu": "8"})) for n in range(2)],
        {"gpus_per_node": 8, "nodes": 3},
        "asks for 3 nodes; the 2 nodes of the cluster have room for 2 such pods when empty",
        "kubectl get nodes",
    ),
    "no label": (
        lambda k: k.put("nodes", node("n1")),
        {"node_selector": {"zone": "z"}},
        "no node has zone=z",
        "kubectl get nodes --show-labels",
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_the_cluster_lacks_is_said_before_anything_is_created(name, kube, tmp_path, monkeypatch):
    import re

    prepare, asked, finding, remedy = LACKS[name]
    prepare(kube)
    asked = dict(asked)
    where = target(tmp_path / "root", **asked.pop("target", {}))
    with pytest.raises(UserError) as caught:
        there.train(connect(kube, tmp_path, monkeypatch), str(tmp_path / "root"), request(**asked), where)
    assert caught.value.exit_code == 2
    assert any(finding in fault.finding and re.search(remedy, fault.remedy) for fault in caught.value.faults), str(caught.value)
    assert kube.created == []


def test_a_namespace_that_is_not_there_is_all_that_is_said_of_it(kube, tmp_path, monkeypatch):
    kube.put("nodes", node("n1"))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, kube.address)))
    write_csv(tmp_path / "table.csv", rows=20)
    write(tmp_path, plain_document())
    monkeypatch.chdir(tmp_path)
    ask = ["check", "job.yaml", "--namespace", "sn", "--set", "cluster.gpus_per_node=8"]
    done = CliRunner().invoke(main, ask)
    assert done.exit_code == 2
    assert "namespace sn: there is none of that name" in done.output
    assert "the largest node has 0" in done.output
    assert "has no " not in done.output
    kube.denied.add(("get", "namespaces"))  # who may not look at namespaces is told what it lacks
    done = CliRunner().invoke(main, ask)
    assert "namespace sn: has no TrainingRuntime 'cotrain'" in done.output


def test_all_that_is_missing_is_said_at_once(kube, tmp_path, monkeypatch):
    kube.remove("trainingruntimes", "cotrain")
    kube.put("nodes", node("n1"))
    with pytest.raises(LaunchError) as caught:
        there.train(
            connect(kube, tmp_path, monkeypatch),
            str(tmp_path / "root"),
            request(gpus_per_node=4),
            target(tmp_path / "root", store_secret="s3", ca_config_map="ca"),
        )
    assert len(caught.value.faults) == 4


def test_of_a_secret_nothing_but_its_being_there_is_asked_for(kube, launch, tmp_path, monkeypatch):
    kube.denied.discard(("get", "secrets"))
    kube.put("secrets", {"metadata": {"name": "s3"}, "data": {"AWS_SECRET_ACCESS_KEY": "c2VjcmV0"}})
    kube.controller = complete(kube, tmp_path)
    where = target(tmp_path / "root", store_secret="s3")
    assert there.train(connect(kube, tmp_path, monkeypatch), str(tmp_path / "root"), request(), where).key == KEY
    assert any("/secrets/s3" in path for _, path in kube.requests)
    assert not [name for resource, name in kube.read if resource == "secrets"]


@pytest.fixture
def planned(tmp_path):
    """A document that was checked, and what is to be prepared of it."""
    spec = document(cluster={"nodes": 2, "gpus_per_node": 8, "launcher": "trainjob"})
    root = str(tmp_path / "root")
    return root, [{"spec": keep_spec(spec, root), "run": "r" * 24}]


def test_what_the_cluster_lacks_ends_a_run_before_anything_is_prepared(kube, planned, tmp_path, monkeypatch):
    root, items = planned
    kube.put("nodes", node("n1"))
    kube.remove("trainingruntimes", "cotrain")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, kube.address)))
    monkeypatch.setenv("COTRAIN_NAMESPACE", "ns")
    with pytest.raises(LaunchError) as caught:
        look(root, items)
    assert [f.finding.split(";")[0] for f in caught.value.faults] == [
        "has no TrainingRuntime 'cotrain'",
        "asks for 8 nvidia.com/gpu per node",
    ]
    assert kube.created == []
    finished(root, "r" * 24, "run-1")
    look(root, items)  # nothing has changed, so nothing will be launched


def test_a_document_may_be_held_against_a_cluster_beforehand(kube, tmp_path, monkeypatch):
    kube.put("nodes", node("n1"))
    kube.denied.add(("create", "trainjobs"))  # whoever asks need not be who launches
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, kube.address)))
    write_csv(tmp_path / "table.csv", rows=20)
    write(tmp_path, plain_document())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["check", "job.yaml", "--namespace", "ns"])
    assert done.exit_code == 0, done.output
    assert "not looked at" not in done.output
    done = CliRunner().invoke(main, ["check", "job.yaml", "--namespace", "ns", "--set", "cluster.gpus_per_node=8"])
    assert done.exit_code == 2
    assert "asks for 8 nvidia.com/gpu per node; the largest node has 0" in done.output
    assert "see: kubectl get nodes" in done.output
    kube.denied.add(("list", "nodes"))
    done = CliRunner().invoke(main, ["check", "job.yaml", "--namespace", "ns", "--set", "cluster.gpus_per_node=8"])
    assert done.exit_code == 0
    assert "namespace ns: not looked at, for want of rights: nodes\n" in done.output


@pytest.mark.parametrize("image", ["Registry/Cotrain:1", "cotrain:", "cotrain@sha256:abc", "a b", "https://registry.example.com/cotrain:1"])
def test_what_can_not_be_an_image_is_refused_before_anything_is_created(image, kube, tmp_path, monkeypatch):
    with pytest.raises(LaunchError, match="can't be the name of an image"):
        there.train(
            connect(kube, tmp_path, monkeypatch), str(tmp_path / "root"), request(), replace(target(tmp_path / "root"), image=image)
        )
    assert kube.created == []


@pytest.mark.parametrize(
    "image", ["cotrain", "localhost:5000/a/b-c__d:1.0_x", f"[::1]:5000/cotrain@sha256:{'0' * 64}", "a.b/c:t@sha256:" + "f" * 64]
)
def test_names_of_images_are_told_from_others(image):
    assert named(image) == image


def test_what_we_may_not_look_at_is_not_held_against_the_job(kube, launch, tmp_path):
    for resource in ("trainingruntimes", "secrets", "serviceaccounts", "resourcequotas", "nodes", "configmaps"):
        kube.denied |= {("get", resource), ("list", resource)}
    kube.controller = complete(kube, tmp_path)
    assert launch().key == KEY


def test_nodes_that_come_on_demand_are_not_counted(kube, launch, tmp_path, monkeypatch):
    kube.put("nodes", node("n1"))
    kube.controller = complete(kube, tmp_path)
    monkeypatch.setenv("COTRAIN_NODES_ON_DEMAND", "1")
    assert launch(asked=request(gpus_per_node=64)).key == KEY


def test_no_cluster_at_all_is_the_users_to_put_right(tmp_path, monkeypatch):
    from components.cluster import Cluster

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LaunchError, match="no cluster is known"):
        Cluster.connect("ns")
