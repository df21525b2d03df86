"""The parameters of the pipeline that change a document: by name, the field each sets, and what may be chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from components.target import LAUNCHERS
from trainer.spec import Train

AS_WRITTEN = "spec"
"""Chosen, or left empty: the field stays as the document has it."""


@dataclass(frozen=True)
class Setting:
    """A parameter that sets one field of the document; `text` where the field holds text, which YAML must not read as anything else."""

    path: str
    text: bool = False
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "train_seeds": Setting("seeds"),
    "train_precision": Setting("train.precision", True, (AS_WRITTEN, *get_args(Train.model_fields["precision"].annotation))),
    "train_zero_stage": Setting("train.zero.stage", False, (AS_WRITTEN, "0", "1", "2", "3")),
    "cluster_launcher": Setting("cluster.launcher", True, (AS_WRITTEN, *LAUNCHERS)),
    "cluster_nodes": Setting("cluster.nodes"),
    "cluster_gpus_per_node": Setting("cluster.gpus_per_node"),
    "cluster_queue": Setting("cluster.queue", True),
}


def overrides(settings: Mapping[str, str], changes: Iterable[str] = ()) -> list[str]:
    """What `load_spec` takes as overrides: those settings that were made, then the changes as they are."""
    made = [
        f"{SETTINGS[name].path}={json.dumps(value.strip()) if SETTINGS[name].text else value.strip()}"
        for name, value in settings.items()
        if value.strip() not in ("", AS_WRITTEN)
    ]
    return [*made, *changes]
