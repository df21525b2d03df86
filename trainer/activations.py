"""What a forward pass keeps for the backward pass, found without doing either: on tensors that have shapes and no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trainer.joint import Joint, build
from trainer.spec import JointSpec

_ROWS = 8


def activation_bytes_per_row(spec: JointSpec, fitted: Mapping[str, Any]) -> float:
    """Bytes in float32 that training all tasks keeps for a row (of each dataset); parameters and inputs are not counted."""
    with torch.device("meta"):
        module = build(spec, fitted)
        known = {_storage(p) for p in module.parameters()}
        kept: dict[int, int] = {}
        alive: list[Tensor] = []  # a storage's address is its own only as long as it lives

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in known:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
                alive.append(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = [_forward(module, spec, data, fitted, known) for data in spec.data]
    del outputs
    return sum(kept.values()) / _ROWS


def _forward(module: Joint, spec: JointSpec, data: str, fitted: Mapping[str, Any], known: set[int]) -> dict[str, Tensor]:
    tasks = [name for name, task in spec.tasks.items() if task.data == data]
    inputs = {}
    for column in dict.fromkeys(c for name in tasks for c in spec.tasks[name].inputs):
        kind, shape = fitted[data][column]["kind"], fitted[data][column]["shape"]
        inputs[column] = torch.zeros(_ROWS, *shape, dtype=torch.int64 if kind in ("category", "text") else torch.float32)
        known.add(_storage(inputs[column]))
    return module.outputs(tasks, inputs) | inputs if tasks else {}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
