"""What is sent to a cluster: typed, the same pod whoever launches it, and exactly what it was the last time somebody looked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import kubernetes_schemas
import pytest
import training_job
import yaml
from training_job import KEY, TARGET

from components.manifests import SELECTOR, failure_rules, job_name, render
from components.target import Owner, Target, launcher_of
from trainer.errors import LaunchError

GOLDEN = Path(__file__).parents[1] / "golden"
RUNTIME = Path(__file__).parents[2] / "k8s" / "base" / "runtime.yaml"
NODES = (
    "cluster.memory_gib_per_node=16",
    "cluster.cpus_per_node=4",
    "cluster.shm_gib=4",
    "cluster.queue=research",
    "cluster.priority=urgent",
)
GPUS = (
    "cluster.gpus_per_node=8",
    "train.batch=128",
    "cluster.node_selector={pool: a100}",
    "cluster.tolerations=[{key: gpu, effect: NoSchedule}]",
)


def pod_of(thing):
    return thing["spec"]["template"]["spec"]


def merged(base, patch):
    """Two parts of a pod as Kubernetes merges them strategically: named things by name, mounts by path, everything else replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{name: merged(base[name], value) if name in base else value for name, value in patch.items()}}
    if isinstance(base, list) and isinstance(patch, list) and patch and isinstance(patch[0], dict):
        name = "mountPath" if "mountPath" in patch[0] else "name"
        if name not in patch[0] or (base and name not in base[0]):
            return patch
        by_name = {entry[name]: entry for entry in base}
        for entry in patch:
            by_name[entry[name]] = merged(by_name[entry[name]], entry) if entry[name] in by_name else entry
        return list(by_name.values())
    return patch


def as_trainer_would(runtime, trainjob):
    """The pod template that Kubeflow Trainer makes of a runtime and a TrainJob."""
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (patch,) = trainjob["spec"]["runtimePatches"]
    (change,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert change["name"] == job["name"]
    template = merged(job["template"]["spec"]["template"], change["template"]["spec"]["template"])
    node, trainer = template["spec"]["containers"][0], trainjob["spec"]["trainer"]
    node |= {name: trainer[name] for name in ("image", "command", "args") if name in trainer}
    node["resources"] = trainer.get("resourcesPerNode", {})
    node["env"] = merged(node["env"], trainer["env"])
    return template


def sorted_lists(thing):
    if isinstance(thing, dict):
        return {name: sorted_lists(value) for name, value in thing.items() if value not in ([], {}) or name == "emptyDir"}
    if isinstance(thing, list):
        return sorted((sorted_lists(value) for value in thing), key=lambda value: json.dumps(value, sort_keys=True))
    return thing


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_what_is_sent_is_the_golden_one(launcher):
    text = yaml.safe_dump_all(json.loads(json.dumps(render(training_job.request(*NODES), TARGET, launcher))), sort_keys=False, width=120)
    golden = GOLDEN / f"{launcher}.yaml"
    if os.environ.get("COTRAIN_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "if the change is meant: COTRAIN_WRITE_GOLDEN=1 pytest tests/unit/test_manifests.py"


@pytest.mark.parametrize("overrides", [(), NODES, GPUS, ("cluster.min_nodes=1",)])
@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_a_real_server_knows_every_field_of_what_is_sent(launcher, overrides):
    for thing in render(training_job.request(*overrides), TARGET, launcher):
        assert list(kubernetes_schemas.faults(thing)) == []


def test_the_schemas_refuse_an_unknown_field_however_deep():
    (thing,) = render(training_job.request(), TARGET, "trainjob")
    thing["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"][
        "backoffLimit"
    ] = 1
    assert list(kubernetes_schemas.faults(thing))


@pytest.mark.parametrize("overrides", [(), NODES])
def test_the_pod_of_a_trainjob_is_the_pod_of_a_job(overrides):
    request = training_job.request(*overrides)
    (trainjob,) = render(request, TARGET, "trainjob")
    _, job = render(request, TARGET, "job")
    made = as_trainer_would(yaml.safe_load(RUNTIME.read_text()), trainjob)
    wanted = job["spec"]["template"]
    for container in (*wanted["spec"]["containers"], *wanted["spec"]["initContainers"]):
        # the Trainer sets these, and refuses a TrainJob that does
        container["env"] = [entry for entry in container["env"] if not entry["name"].startswith("PET_")]
    for container in made["spec"]["containers"]:
        container["env"] = [entry for entry in container["env"] if entry["name"] not in ("COTRAIN_RESTARTS", "COTRAIN_MAX_RESTARTS")]
    # the image of the init container is the runtime's: no TrainJob can set it
    made["spec"]["initContainers"][0]["image"] = TARGET.image
    del wanted["spec"]["subdomain"]
    assert sorted_lists(made) == sorted_lists(wanted)


def test_the_runtime_tells_preemption_from_failure_as_a_job_does():
    (replicated,) = yaml.safe_load(RUNTIME.read_text())["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["template"]["spec"]["podFailurePolicy"]["rules"] == failure_rules()


def test_peers_find_each_other_by_the_names_that_the_service_gives():
    service, job = render(training_job.request(), TARGET, "job")
    values = {entry["name"]: entry.get("value") for entry in pod_of(job)["containers"][0]["env"]}
    name = job["metadata"]["name"]
    assert values["PET_MASTER_ADDR"] == f"{name}-0.{pod_of(job)['subdomain']}"
    assert service["metadata"]["name"] == pod_of(job)["subdomain"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert values["PET_NNODES"] == "2"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_torchrun_is_given_time_to_save_and_the_pod_a_little_more(launcher):
    thing = render(training_job.request("cluster.grace_s=100"), TARGET, launcher)[-1]
    text = json.dumps(thing)
    (grace,) = re.findall(r'"terminationGracePeriodSeconds": (\d+)', text)
    assert '"TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": "100"' in text
    assert int(grace) > 100


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_a_queued_job_is_held_from_the_first_moment(launcher):
    free, queued = (render(training_job.request(*overrides), TARGET, launcher)[-1] for overrides in ((), NODES))
    assert "suspend" not in free["spec"]
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


def test_names_are_the_same_for_the_same_root_and_key_and_fit_a_host_name():
    request = training_job.request()
    assert job_name(request, "s3://a") == job_name(training_job.request("cluster.queue=x", "observe.port=1"), "s3://a")
    others = {job_name(request, "s3://b"), job_name({**request, "key": "another"}, "s3://a"), job_name(request, "s3://a")}
    assert len(others) == 3
    long = {**request, "task": "recommended_by_whom_and_when", "spec": {**request["spec"], "name": "a" * 40}}
    name = job_name(long, "s3://a")
    assert len(name) < 45
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_who_launched_it_owns_it_and_can_be_found():
    for thing in render(training_job.request(), TARGET, "job"):
        assert thing["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": TARGET.owner.name, "uid": TARGET.owner.uid}
        ]
        assert SELECTOR.items() <= thing["metadata"]["labels"].items()
        assert thing["metadata"]["labels"]["cotrain.io/key"] == KEY


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_secrets_are_named_and_never_read(launcher, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    target = Target.from_environment("s3://b", {**os.environ, "COTRAIN_IMAGE": "i", "COTRAIN_STORE_SECRET": "creds"})
    text = json.dumps(render(training_job.request(), target, launcher))
    assert "hunter2" not in text
    assert '{"secretKeyRef": {"name": "creds", "key": "AWS_SECRET_ACCESS_KEY"}}' in text


def test_the_store_that_the_launcher_uses_is_passed_on():
    target = Target.from_environment("s3://b", {"AWS_ENDPOINT_URL_S3": "http://store:9000", "AWS_ACCESS_KEY_ID": "x"})
    assert target.env == ({"name": "AWS_ENDPOINT_URL_S3", "value": "http://store:9000"},)


@pytest.mark.parametrize("launcher", ["trainjob", "job"])
def test_every_variable_is_there_once_and_the_platform_has_the_last_word(launcher):
    environ = {
        "AWS_ENDPOINT_URL_S3": "http://localhost:9000",
        "COTRAIN_IMAGE": "i",
        "COTRAIN_POD": "{env: [{name: HOME, value: /h}, {name: AWS_ENDPOINT_URL_S3, value: x}]}",
    }
    thing = render(training_job.request(), Target.from_environment("s3://b", environ), launcher)[-1]
    env = thing["spec"]["trainer"]["env"] if launcher == "trainjob" else pod_of(thing)["containers"][0]["env"]
    values = {entry["name"]: entry.get("value") for entry in env}
    assert len(values) == len(env)
    assert (values["HOME"], values["AWS_ENDPOINT_URL_S3"]) == ("/h", "x")


def test_the_environment_says_where():
    environ = {
        "COTRAIN_NAMESPACE": "team",
        "COTRAIN_POD_NAME": "p",
        "COTRAIN_POD_UID": "u",
        "COTRAIN_POD": "{tolerations: [{key: spot, operator: Exists}], imagePullSecrets: [{name: pull}], env: [{name: A, value: b}]}",
    }
    target = Target.from_environment("/r", environ, image="other", namespace=None)
    assert (target.namespace, target.image, target.owner) == ("team", "other", Owner("p", "u"))
    assert target.tolerations == ({"key": "spot", "operator": "Exists"},)
    assert target.image_pull_secrets == ("pull",)
    assert target.env == ({"name": "A", "value": "b"},)
    assert launcher_of({"launcher": None}, {"COTRAIN_LAUNCHER": "job"}) == "job"
    assert launcher_of({"launcher": "trainjob"}, {"COTRAIN_LAUNCHER": "job"}) == "trainjob"
    assert launcher_of({}, {}) == "local"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"COTRAIN_POD": "{volumez: []}"}, "no field 'volumez'.*\n.*did you mean 'volumes'"),
        ({"COTRAIN_POD": "[1]"}, "is a list, not a mapping"),
        ({"COTRAIN_POD": "{a: "}, "neither JSON nor YAML"),
    ],
)
def test_a_bad_setting_is_a_fault_with_its_remedy(environ, said):
    with pytest.raises(LaunchError, match=said):
        Target.from_environment("/r", environ)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tolerations": ({"key": "a", "operater": "Exists"},)}, r"tolerations\[0\].operater: Kubernetes has no such field"),
        ({"volumes": ({"nam": "a"},)}, r"volumes.*nam"),
        ({"env": ({"name": 1},)}, "should be a valid string"),
        ({"image": None}, "no image is given"),
    ],
)
def test_what_no_server_would_take_is_refused_before_it_is_sent(changed, said):
    with pytest.raises(LaunchError, match=said):
        render(training_job.request(), TARGET.with_(**changed), "job")


def test_a_volume_that_is_mounted_twice_is_refused_as_the_trainer_would():
    mounts = ({"name": "data", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"})
    target = TARGET.with_(volumes=({"name": "data", "emptyDir": {}},), volume_mounts=mounts)
    with pytest.raises(LaunchError, match="'data' twice"):
        render(training_job.request(), target, "trainjob")
    assert [list(kubernetes_schemas.faults(thing)) for thing in render(training_job.request(), target, "job")] == [[], []]
    (thing,) = render(training_job.request(), TARGET, "trainjob")
    thing["spec"]["trainer"]["env"] *= 2
    assert list(kubernetes_schemas.faults(thing)), "a server refuses a variable that is there twice"


def test_gpus_are_asked_for_and_the_preflight_sees_one():
    _, job = render(training_job.request(*GPUS), TARGET, "job")
    pod = pod_of(job)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["initContainers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_where_it_runs_is_no_part_of_the_key():
    from trainer.plan import train_relevant
    from trainer.spec import JointSpec

    placed = training_job.request(*NODES, "cluster.launcher=job", "cluster.max_restarts=9", "cluster.deadline_hours=1")
    plain = training_job.request()
    assert train_relevant(JointSpec.model_validate(placed["spec"])) == train_relevant(JointSpec.model_validate(plain["spec"]))


def test_a_local_run_has_no_manifests():
    with pytest.raises(LaunchError, match="needs no manifests"):
        render(training_job.request(), TARGET, "local")
