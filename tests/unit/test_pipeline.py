"""The compiled pipeline: what a cluster gets is what the local runner runs, and it changes only on purpose."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

GOLDEN = Path(__file__).parents[1] / "golden" / "cotrain.yaml"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pipelines.cli import main

    file = tmp_path_factory.mktemp("compiled") / "cotrain.yaml"
    done = CliRunner().invoke(main, ["compile", "-o", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return file.read_text()


@pytest.fixture(scope="module")
def compiled(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


def test_the_compiled_pipeline_is_the_golden_one(text):
    """After a change on purpose: GOLDEN=write pytest tests/unit/test_pipeline.py."""
    normal = re.sub(r"^sdkVersion: kfp-.*$", "sdkVersion: kfp", text, flags=re.M)
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(normal)
    assert yaml.safe_load(normal) == yaml.safe_load(GOLDEN.read_text())


def test_the_compiled_pipeline_loads_in_the_sdk(text):
    from kfp import components

    loaded = components.load_component_from_text(text)
    assert loaded.name == "cotrain"
    assert set(loaded.component_spec.inputs) == {"spec", "root"}


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
        "evaluate": {"system.Metrics", "system.ClassificationMetrics"},
        "compare": {"system.Metrics"},
        "report": {"system.HTML"},
    }


def test_no_step_installs_anything_and_all_run_in_one_image(compiled):
    containers = [entry["container"] for entry in compiled["deploymentSpec"]["executors"].values()]
    assert len(containers) == 11
    assert len({container["image"] for container in containers}) == 1
    assert not [c for c in containers if "pip install" in " ".join(c["command"])]


def test_the_image_of_every_step_can_be_named(tmp_path):
    import subprocess
    import sys

    command = [
        sys.executable,
        "-c",
        "from pipelines.cli import main; main()",
        "compile",
        "-o",
        "out.yaml",
        "--image",
        "registry.example/cotrain:7",
    ]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    executors = yaml.safe_load((tmp_path / "out.yaml").read_text())["deploymentSpec"]["executors"].values()
    assert {entry["container"]["image"] for entry in executors} == {"registry.example/cotrain:7"}


def test_an_output_that_kfp_can_not_write_is_told():
    from pipelines.cli import main

    done = CliRunner().invoke(main, ["compile", "-o", "out.json5"])
    assert done.exit_code == 2
    assert "'out.json5' is neither .yaml nor .json" in done.output
