"""The compiled pipeline: what a cluster gets is what the local runner runs, and it changes only on purpose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format

PARAMETERS = {
    *("spec", "root", "changes", "train_seeds", "train_precision", "train_zero_stage"),
    *("cluster_launcher", "cluster_nodes", "cluster_gpus_per_node", "cluster_image", "cluster_queue"),
}
GOLDEN = Path(__file__).parents[1] / "golden" / "cotrain.yaml"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pipelines.cli import main

    file = tmp_path_factory.mktemp("compiled") / "cotrain.yaml"
    done = CliRunner().invoke(main, ["compile", "-o", str(file)], env={"COTRAIN_IMAGE": None}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return file.read_text()


@pytest.fixture(scope="module")
def compiled(text: str) -> dict[str, Any]:
    return next(yaml.safe_load_all(text))


def test_the_compiled_pipeline_is_the_golden_one(text):
    """After a change on purpose: GOLDEN=write pytest tests/unit/test_pipeline.py."""
    normal = re.sub(r"^sdkVersion: kfp-.*$", "sdkVersion: kfp", text, flags=re.M)
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(normal)
    assert list(yaml.safe_load_all(normal)) == list(yaml.safe_load_all(GOLDEN.read_text()))


def test_the_compiled_pipeline_loads_in_the_sdk(text):
    from kfp import components

    loaded = components.load_component_from_text(text)
    assert loaded.name == "cotrain"
    assert set(loaded.component_spec.inputs) == PARAMETERS


def test_each_dataset_run_baseline_and_task_has_a_loop(compiled):
    loops = {}
    for component in [compiled["root"], *compiled["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "parameterIterator" in task:
                loops[name] = set(compiled["components"][task["componentRef"]["name"]]["dag"]["tasks"])
    assert list(loops.values()) == [{"prepare"}, {"train"}, {"train-2"}, {"evaluate"}]


def test_metrics_confusions_and_the_report_are_artifacts_of_the_kinds_that_kfp_shows(compiled):
    kinds = {
        name.removeprefix("comp-"): {a["artifactType"]["schemaTitle"] for a in component["outputDefinitions"]["artifacts"].values()}
        for name, component in compiled["components"].items()
        if "executorLabel" in component and "artifacts" in component.get("outputDefinitions", {})
    }
    assert kinds == {
        "prepare": {"system.Dataset"},
        "train": {"system.Model", "system.Metrics", "system.Markdown"},
        "train-2": {"system.Model", "system.Metrics", "system.Markdown"},
        "evaluate": {"system.Metrics", "system.ClassificationMetrics"},
        "compare": {"system.Metrics"},
        "publish": {"system.Model"},
        "report": {"system.HTML"},
        "causes": {"system.Markdown"},
    }


def test_no_step_installs_anything_and_all_run_in_one_image(compiled):
    containers = [entry["container"] for entry in compiled["deploymentSpec"]["executors"].values()]
    assert len(containers) == 12
    assert len({container["image"] for container in containers}) == 1
    assert not [c for c in containers if "pip install" in " ".join(c["command"])]


@pytest.mark.parametrize(
    ("options", "environment"),
    [(["--image", "registry.example/cotrain:7"], "registry.example/cotrain:8"), ([], "registry.example/cotrain:7")],
    ids=["option", "environment"],
)
def test_the_image_of_every_step_can_be_named_whatever_was_compiled_before(text, tmp_path, options, environment):
    from pipelines.cli import main

    file = tmp_path / "out.yaml"
    CliRunner().invoke(main, ["compile", "-o", str(file), *options], env={"COTRAIN_IMAGE": environment}, catch_exceptions=False)
    assert file.read_text() == text.replace("cotrain-python:0.1.0", "registry.example/cotrain:7") != text


def test_an_image_that_no_registry_could_have_is_refused(tmp_path):
    from pipelines.cli import main

    done = CliRunner().invoke(main, ["compile", "-o", str(tmp_path / "out.yaml")], env={"COTRAIN_IMAGE": "Not An Image"})
    assert done.exit_code == 2
    assert "COTRAIN_IMAGE: 'Not An Image'" in done.output


def tasks(compiled: dict[str, Any]) -> dict[str, dict[str, Any]]:
    dags = [component["dag"] for component in [compiled["root"], *compiled["components"].values()] if "dag" in component]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


def test_every_parameter_says_what_it_is_and_all_but_two_may_be_left_out(compiled):
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == PARAMETERS
    assert all(len(parameter["description"]) > 20 for parameter in parameters.values())
    assert {name for name, parameter in parameters.items() if not parameter.get("isOptional")} == {"spec", "root"}


def test_enumerations_are_drop_downs_of_what_the_document_takes(compiled, text):
    from kfp.pipeline_spec import pipeline_spec_pb2

    from components.target import LAUNCHERS
    from trainer.spec import Train

    chosen = {name: p["literals"] for name, p in compiled["root"]["inputDefinitions"]["parameters"].items() if "literals" in p}
    assert chosen == {
        "train_precision": ["spec", *Train.model_fields["precision"].annotation.__args__],
        "train_zero_stage": ["spec", "0", "1", "2", "3"],
        "cluster_launcher": ["spec", *LAUNCHERS],
    }
    loaded = json_format.ParseDict(compiled, pipeline_spec_pb2.PipelineSpec())
    literals = loaded.root.input_definitions.parameters["cluster_launcher"].literals
    assert [value.string_value for value in literals] == chosen["cluster_launcher"]
    assert all(compiled["root"]["inputDefinitions"]["parameters"][name]["defaultValue"] in chosen[name] for name in chosen)


def test_what_reads_the_world_always_runs_and_what_works_on_digests_may_be_cached(compiled):
    executed = {name: task for name, task in tasks(compiled).items() if "cachingOptions" in task}
    assert len(executed) == len(compiled["deploymentSpec"]["executors"])
    assert {name for name, task in executed.items() if task["cachingOptions"].get("enableCache")} == {"prepare", "train", "train-2"}


def test_steps_that_work_are_tried_again_and_the_one_that_finds_faults_is_not(compiled):
    retried = {name: task["retryPolicy"]["maxRetryCount"] for name, task in tasks(compiled).items() if "retryPolicy" in task}
    assert retried == {"prepare": 2, "train": 3, "train-2": 3, "evaluate": 2, "compare": 2, "publish": 2, "report": 2}


def test_what_is_asked_for_on_training_goes_to_the_pods_that_train(compiled):
    fields = {entry["field"]: entry.get("applyToTask", False) for entry in compiled["components"]["comp-train"]["taskConfigPassthroughs"]}
    assert fields == {
        **dict.fromkeys(("RESOURCES", "KUBERNETES_TOLERATIONS", "KUBERNETES_NODE_SELECTOR", "KUBERNETES_AFFINITY"), False),
        **dict.fromkeys(("ENV", "KUBERNETES_VOLUMES"), True),
    }
    assert not [entry for entry in compiled["deploymentSpec"]["executors"].values() if "resources" in entry["container"]]


def test_every_step_knows_its_run_and_its_pod(compiled, text):
    (_, platform) = yaml.safe_load_all(text)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(compiled["deploymentSpec"]["executors"])
    store = (Path(__file__).parents[2] / "k8s" / "components" / "s3").glob("*.yaml")
    named = "".join(file.read_text() for file in store)
    for entry in executors.values():
        assert [(secret["secretName"], secret["optional"]) for secret in entry["secretAsEnv"]] == [("cotrain-store", True)]
        assert [(config["configMapName"], config["optional"]) for config in entry["configMapAsEnv"]] == [("cotrain-store", True)]
        (ca,) = entry["configMapAsVolume"]
        assert ca["optional"]
        assert all(word in named for word in (ca["configMapName"], ca["mountPath"]))
        assert {env["name"] for env in entry["fieldPathAsEnv"]} == {
            "COTRAIN_RUN_ID", "COTRAIN_POD_NAME", "COTRAIN_POD_UID", "COTRAIN_NAMESPACE"
        }  # fmt: skip


def test_a_cluster_trains_by_train_jobs_where_the_document_says_nothing(compiled):
    env = {e["name"]: e["value"] for e in compiled["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]}
    assert env == {
        "COTRAIN_IMAGE": compiled["deploymentSpec"]["executors"]["exec-train"]["container"]["image"],
        "COTRAIN_LAUNCHER": "trainjob",
    }


def test_sigterm_reaches_the_python_of_every_step(compiled):
    """The shell of a step is sh, which on Debian keeps the signal to itself."""
    scripts = {tuple(executor["container"]["command"][:3]) for executor in compiled["deploymentSpec"]["executors"].values()}
    ((shell, option, script),) = scripts
    program = "import signal, sys, time\nsignal.signal(15, lambda *a: sys.exit(7))\nprint('up', flush=True)\ntime.sleep(60)\n"
    command = [shell, option, script, program, "--executor_input", "{}", "--function_to_execute", "step"]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        assert any(line == "up\n" for line in process.stdout)
        process.terminate()
        assert process.wait(20) == 7


def test_why_a_run_failed_is_told_whatever_happened(compiled):
    handled = compiled["root"]["dag"]["tasks"]
    assert handled["causes"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert handled["causes"]["dependentTasks"] == [name for name in handled if name != "causes"]


def test_an_output_that_kfp_can_not_write_is_told():
    from pipelines.cli import main

    done = CliRunner().invoke(main, ["compile", "-o", "out.json5"])
    assert done.exit_code == 2
    assert "'out.json5' is neither .yaml nor .json" in done.output


def test_a_step_asks_for_its_pods_what_the_pipeline_asks_for_it():
    from kfp.dsl import TaskConfig

    from components.launch import asked

    assert asked(None) == asked(TaskConfig()) == {}
    toleration = {"key": "gpu", "operator": "Exists"}
    told = TaskConfig(
        tolerations=[toleration],
        node_selector={"zone": "a"},
        env=[{"name": name, "value": "7"} for name in ("COTRAIN_RUN_ID", "AWS_ACCESS_KEY_ID", "HF_HOME")],
        volumes=[
            {"name": "lake", "persistentVolumeClaim": {"claimName": "lake"}},
            {"name": "ca", "configMap": {"name": "cotrain-store-ca"}},
        ],
        volume_mounts=[{"name": "lake", "mountPath": "/lake"}, {"name": "ca", "mountPath": "/etc/cotrain/ca"}],
        resources={"limits": {"amd.com/gpu": "8"}},
    )
    assert asked(told) == {
        "tolerations": (toleration,),
        "node_selector": {"zone": "a"},
        "env": ({"name": "HF_HOME", "value": "7"},),
        "volumes": ({"name": "lake", "persistentVolumeClaim": {"claimName": "lake"}},),
        "volume_mounts": ({"name": "lake", "mountPath": "/lake"},),
        "resources": {"limits": {"amd.com/gpu": "8"}},
    }
