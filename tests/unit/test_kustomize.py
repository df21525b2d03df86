"""k8s/: every overlay and component renders, a real server would take it, and nothing in it may do more than it has to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import kubernetes_schemas
import pytest
import yaml

from components.manifests import _PATCHABLE, failure_rules
from components.template import METRICS_PORT, STORE

K8S = Path(__file__).parents[2] / "k8s"
COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir())
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
TOOL = next(([path, *rest] for tool, rest in (("kustomize", ["build"]), ("kubectl", ["kustomize"])) if (path := shutil.which(tool))), None)
needs_kustomize = pytest.mark.skipif(TOOL is None, reason="neither kustomize nor kubectl is here to render with")


@cache
def build(folder: Path) -> list[dict]:
    found = subprocess.run([*TOOL, str(folder)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return list(yaml.safe_load_all(found.stdout))


@pytest.fixture
def with_component(tmp_path_factory):
    """Renders the base with some components over it."""

    def render(*names: str) -> list[dict]:
        # next to a copy: kustomize takes no absolute paths
        root = tmp_path_factory.mktemp("kustomize")
        shutil.copytree(K8S, root / "k8s")
        folder = root / "k8s" / "overlays" / "one"
        folder.mkdir()
        text = yaml.safe_dump({"resources": ["../../base"], "components": [f"../../components/{name}" for name in names]})
        (folder / "kustomization.yaml").write_text(text)
        return build(folder)

    return render


def pods(things):
    """Every pod spec, by what it is in."""
    for thing in things:
        if thing["kind"] == "TrainingRuntime":
            for job in thing["spec"]["template"]["spec"]["replicatedJobs"]:
                yield thing["kind"], job["template"]["spec"]["template"]["spec"]
        if thing["kind"] == "CronJob":
            yield thing["kind"], thing["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def runtime_pod(things):
    return dict(pods(things))["TrainingRuntime"]


def of_kind(things, kind):
    return [thing for thing in things if thing["kind"] == kind]


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_to_what_a_server_takes(overlay):
    things = build(K8S / "overlays" / overlay)
    unknown = {thing["kind"] for thing in things if not kubernetes_schemas.knows(thing)}
    assert unknown <= {"PodMonitor", "PrometheusRule", "PriorityClass"}, "of these there are no schemas here"
    assert [fault for thing in things if kubernetes_schemas.knows(thing) for fault in kubernetes_schemas.faults(thing)] == []
    cluster_wide = ("Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")
    assert {thing["metadata"].get("namespace") for thing in things if thing["kind"] not in cluster_wide} == {"cotrain"}


@needs_kustomize
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_goes_over_the_base_alone(component, with_component):
    things = with_component(component)
    assert [fault for thing in things if kubernetes_schemas.knows(thing) for fault in kubernetes_schemas.faults(thing)] == []
    assert things != build(K8S / "base")


@needs_kustomize
def test_all_components_go_together(with_component):
    pod = runtime_pod(with_component(*COMPONENTS))
    assert {entry["key"] for entry in pod["tolerations"]} > {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/tmp", "/etc/cotrain/ca"}
    assert pod["initContainers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay):
    found = list(pods(build(K8S / "overlays" / overlay)))
    assert len(found) == 2
    for _, pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
    (namespace,) = of_kind(build(K8S / "overlays" / overlay), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_image_runs_everything(overlay):
    images = {
        container["image"]
        for _, pod in pods(build(K8S / "overlays" / overlay))
        for container in (*pod["containers"], *pod.get("initContainers", ()))
    }
    assert len(images) == 1
    assert images != {"cotrain"}, "the overlay says which"


def test_the_runtime_is_what_the_trainer_needs():
    runtime = yaml.safe_load((K8S / "base" / "runtime.yaml").read_text())
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    spec = runtime["spec"]["template"]["spec"]
    (job,) = spec["replicatedJobs"]
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod = job["template"]["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["node"]
    (target,) = runtime["spec"]["mlPolicy"]["torch"]["envInjection"]["targets"]
    assert target == {"jobName": "node", "containerNames": [pod["initContainers"][0]["name"]]}
    # Trainer 2.3.0 makes a JobSet that is gone anew, and trains for ever
    assert "ttlSecondsAfterFinished" not in json.dumps(spec)
    assert pod["restartPolicy"] == "Never"
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert 0 < spec["failurePolicy"]["maxRestarts"] < 100
    (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "dshm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert pod["containers"][0]["ports"] == [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}]
    assert not re.search("ssh|mpi|hostfile", json.dumps(runtime))


def test_a_failure_that_is_final_ends_the_job_set_too():
    (rule,) = yaml.safe_load((K8S / "base" / "runtime.yaml").read_text())["spec"]["template"]["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert [entry["action"] for entry in failure_rules()].count("FailJob") == 1


def test_a_trainjob_changes_nothing_that_the_trainer_refuses_to_change():
    schema = kubernetes_schemas.schemas()

    def at(node, *path):
        for name in path:
            while "$ref" in node:
                node = schema["$defs"][node["$ref"].rpartition("/")[2]]
            node = node["items"] if name == "[]" else node["properties"][name]
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return node

    job = at(
        schema["kinds"]["trainer.kubeflow.org/v1alpha1/TrainJob"], "spec", "runtimePatches", "[]", "trainingRuntimeSpec", "template", "spec"
    )
    pod = at(job, "replicatedJobs", "[]", "template", "spec", "template", "spec")
    assert set(_PATCHABLE) <= set(pod["properties"])


def test_pods_may_do_nothing_on_the_api_server():
    training = list(yaml.safe_load_all((K8S / "base" / "training.yaml").read_text()))
    assert [thing["kind"] for thing in training] == ["ServiceAccount"]
    assert training[0]["automountServiceAccountToken"] is False
    everything = [thing for file in (K8S / "base").glob("*.yaml") for thing in yaml.safe_load_all(file.read_text())]
    bound = {subject["name"] for thing in of_kind(everything, "RoleBinding") for subject in thing["subjects"]}
    assert "cotrain-training" not in bound


def rules(file, role):
    for thing in yaml.safe_load_all((K8S / "base" / file).read_text()):
        if thing["kind"] == "Role" and thing["metadata"]["name"] == role:
            yield from thing["rules"]


@pytest.mark.parametrize(("file", "role"), [("launcher.yaml", "cotrain-launcher"), ("sweep.yaml", "cotrain-sweep")])
def test_no_role_has_wild_cards_or_reads_secrets_or_enters_pods(file, role):
    found = list(rules(file, role))
    assert found
    for rule in found:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"secrets", "pods/exec", "roles", "rolebindings", "serviceaccounts/token"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


def test_the_launcher_may_do_all_that_it_looks_for():
    from components.checks import _rights

    allowed = {
        (verb, resource) for rule in rules("launcher.yaml", "cotrain-launcher") for resource in rule["resources"] for verb in rule["verbs"]
    }

    class Asked:
        namespace = "n"

        def may(self, verb, resource):
            return (verb, resource) in allowed

    for kinds in (["TrainJob"], ["Service", "Job"]):
        assert [str(fault) for fault in _rights(Asked(), [{"kind": kind} for kind in kinds])] == []
    # what goes with a Job is told whose it is
    assert ("patch", "services") in allowed


def test_secrets_are_named_and_none_is_here():
    for file in K8S.rglob("*.yaml"):
        for thing in yaml.safe_load_all(file.read_text()):
            found = thing if isinstance(thing, list) else [thing]
            assert not [part for part in found if part.get("kind") == "Secret"], file
    base = runtime_pod(list(yaml.safe_load_all((K8S / "base" / "runtime.yaml").read_text())))
    for container in (*base["containers"], *base["initContainers"]):
        assert {"secretRef": {"name": STORE, "optional": True}} in container["envFrom"]


def served_metrics():
    from prometheus_client import generate_latest

    from trainer.metrics_server import Metrics

    text = generate_latest(Metrics("run", ["a", "b"], None)._registry).decode()
    return set(re.findall(r"^# TYPE (\w+) (?:gauge|counter)", text, re.MULTILINE))


def test_alerts_and_panels_ask_for_metrics_that_are_served():
    folder = K8S / "components" / "monitoring"
    (alerts,) = yaml.safe_load_all((folder / "alerts.yaml").read_text())
    dashboard = json.loads((folder / "cotrain.json").read_text())
    asked = [rule["expr"] for group in alerts["spec"]["groups"] for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for text in asked for name in re.findall(r"cotrain_\w+", text)}
    served = served_metrics()
    assert named <= served
    assert {name for name in served if not name.endswith("_created")} <= {
        name for text in asked for name in re.findall(r"cotrain_\w+", text)
    }


def test_the_dashboard_is_what_its_script_writes():
    import runpy

    script = runpy.run_path(str(K8S.parent / "scripts" / "dashboard.py"))
    assert json.loads((K8S / "components" / "monitoring" / "cotrain.json").read_text()) == script["dashboard"]()


def test_what_watches_pods_looks_for_the_labels_that_they_have():
    from components.manifests import SELECTOR

    (monitor,) = yaml.safe_load_all((K8S / "components" / "monitoring" / "monitor.yaml").read_text())
    (policy,) = yaml.safe_load_all((K8S / "components" / "network-policy" / "training.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"] == SELECTOR
    (between, prometheus) = policy["spec"]["ingress"]
    assert between["from"] == [{"podSelector": {"matchLabels": SELECTOR}}]
    assert "ports" not in between, "ranks choose their ports"
    assert [port["port"] for port in prometheus["ports"]] == ["metrics"]
