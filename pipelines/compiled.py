"""The pipeline as YAML for a cluster: what KFP's compiler writes, with what its SDK has no words for.

Enumerations become drop-downs (`literals` of a parameter, which the SDK can read but not write), SIGTERM reaches the steps,
and those that do the work are tried again. A step that is run again finds what it had done before, so trying costs little;
on one machine, where what fails is the user's own code or document, nothing is tried again.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from components.image import IMAGE
from components.parameters import SETTINGS
from components.target import named
from trainer.spec import digest

RETRIED = {"prepare": 2, "train": 3, "evaluate": 2, "compare": 2, "publish": 2, "report": 2}
"""How often each step is tried again: pods are evicted, nodes go, stores have bad minutes."""
LAUNCHER = "trainjob"
"""What trains on a cluster where the document says nothing."""
_BACKOFF = {"backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"}


def compile_pipeline(image: str | None = None) -> str:
    """The pipeline as the text of a YAML file; every step runs in `image` (default: COTRAIN_IMAGE), and so does what trains,
    unless a run names another.

    Raises:
        LaunchError: there can be no image of that name.
    """
    if image:
        return _compiled(named(image, "--image"))
    return _compiled(named(os.environ.get("COTRAIN_IMAGE") or IMAGE))


@cache
def _compiled(image: str) -> str:
    from kfp import compiler

    from pipelines.joint import joint

    with tempfile.TemporaryDirectory(prefix="cotrain-compile-") as scratch:
        file = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(joint, str(file))
        text = file.read_text()
    head = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    documents = list(yaml.safe_load_all(text))
    _dress(documents[0], image)
    return head + yaml.safe_dump_all(documents, sort_keys=True, width=4096, allow_unicode=True)


def version_of(text: str) -> str:
    """The name of the version that a compiled pipeline is uploaded as: a digest of what it says."""
    return digest(list(yaml.safe_load_all(text)))[:12]


def parameters_of(text: str) -> int:
    """How many parameters a compiled pipeline has."""
    return len(next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"])


def _dress(pipeline: dict[str, Any], image: str) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    for name, setting in SETTINGS.items():
        if setting.choices:
            parameters[name]["literals"] = list(setting.choices)
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        script = executor["container"]["command"]
        # dash, the sh of Debian, keeps SIGTERM to itself: a step that launches would never hear that its run was ended
        script[2] = script[2].replace("_KFP_RUNTIME=true python3 -m", "_KFP_RUNTIME=true exec python3 -m")
        executor["container"]["image"] = image
        if name.startswith(("exec-train", "exec-check")):
            launched = {"COTRAIN_IMAGE": image, "COTRAIN_LAUNCHER": LAUNCHER}
            executor["container"].setdefault("env", []).extend({"name": name, "value": value} for name, value in launched.items())
    for component in [pipeline["root"], *pipeline["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            step = task["componentRef"]["name"].removeprefix("comp-").rstrip("-0123456789")
            if step in RETRIED:
                task["retryPolicy"] = {"maxRetryCount": RETRIED[step], **_BACKOFF}
