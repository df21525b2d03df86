"""The models and heads of a document as one module.

Shape suffixes: B rows, D width of a representation, K outputs of a head, T tasks.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.balance import Balance, Reached
from trainer.spec import JointSpec, Task

Fitted = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Fitted columns by dataset and column."""

Batches = Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""A batch of each dataset: its input columns and its target columns."""


class Joint(nn.Module):
    """Trunks shared between tasks, a head for each.

    Weights are named `models.<model>...` and `heads.<task>...`. Tasks with the same dataset, model and inputs
    share one forward pass of the trunk. A model none of whose parameters learns stays in evaluation mode: neither
    dropout nor running statistics are for what is frozen.
    """

    def __init__(self, tasks: Mapping[str, Task], models: Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.models = nn.ModuleDict(models)
        self.heads = nn.ModuleDict(heads)
        self.balance: Balance | None = None
        """The balance point of the micro-batch at hand; None: gradients of tasks add up as they are."""
        self._sample = (next(self.heads.parameters()),)  # in a tuple, or it would be registered twice
        self._passes: dict[tuple[str, ...], list[tuple[str, list[str], list[str]]]] = {}

    def train(self, mode: bool = True) -> Joint:
        """As `nn.Module.train`, but for frozen models."""
        super().train(mode)
        for model in self.models.values():
            learns = [p.requires_grad for p in model.parameters()]
            if learns and not any(learns):
                model.eval()
        return self

    def outputs(self, tasks: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Head outputs `[B, K]` of tasks on one dataset, from its input columns."""
        return {name: self.heads[name](point.z) for point in self._reach(tasks, inputs) for name in point.tasks}

    def _reach(self, tasks: Sequence[str], inputs: Mapping[str, Tensor]) -> Iterator[Reached]:
        """The representation that each trunk makes, with the tasks whose heads stand on it."""
        dtype = self._sample[0].dtype  # bf16 where the engine made it so
        for model, columns, names in self._trunks(tuple(tasks)):
            place = self.balance.places.get(model) if self.balance and self.training else None
            with place.watch() if place else nullcontext() as seen:
                z_BD = self.models[model](*(x.to(dtype) if x.is_floating_point() else x for x in (inputs[c] for c in columns)))
            yield Reached(z_BD.to(dtype), names, seen)

    def _trunks(self, tasks: tuple[str, ...]) -> list[tuple[str, list[str], list[str]]]:
        """Model, columns and tasks of each forward pass of a trunk."""
        if tasks not in self._passes:
            trunk = lambda name: (self.tasks[name].model, self.tasks[name].inputs)  # noqa: E731
            groups = itertools.groupby(sorted(tasks, key=trunk), key=trunk)
            self._passes[tasks] = [(model, columns, list(names)) for (model, columns), names in groups]
        return self._passes[tasks]

    def forward(self, tasks: Sequence[str], batches: Batches, outputs: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Summed losses `[T]` of `tasks`, in their order, float32; with `outputs` also what the heads gave."""
        points = [
            point
            for data, (inputs, _) in batches.items()
            for point in self._reach([name for name in tasks if self.tasks[name].data == data], inputs)
        ]
        balance = self.balance if self.training else None
        views = balance.views(points) if balance else [dict.fromkeys(point.tasks, point.z) for point in points]
        totals: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, z_BD in (pair for view in views for pair in view.items()):
            task = self.tasks[name]
            found[name] = self.heads[name](z_BD)
            totals[name] = task.objective.total(found[name], batches[task.data][1][task.target])  # type: ignore[union-attr]
        if balance and balance.exact:
            models = dict.fromkeys(self.tasks[name].model for name in tasks)
            balance.measure([totals[name] for name in tasks], [p for m in models for p in self.models[m].parameters() if p.requires_grad])
        total_T = torch.stack([totals[name] for name in tasks])
        return (total_T, found) if outputs else total_T


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def build(spec: JointSpec, fitted: Fitted, tasks: Sequence[str] | None = None, seed: int = 0) -> Joint:
    """A freshly initialised module for some tasks of a resolved document (default: all).

    Each model and head is initialised from (seed, its name) alone, so that joint and independent
    training start from the same weights.
    """
    chosen = {name: spec.tasks[name] for name in (spec.tasks if tasks is None else tasks)}
    models: dict[str, nn.Module] = {}
    heads: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for name, task in chosen.items():
            columns = fitted[task.data]
            if task.model not in models:
                torch.manual_seed(seed_of(seed, "models", task.model))
                models[task.model] = spec.models[task.model].build([columns[column] for column in task.inputs])
            torch.manual_seed(seed_of(seed, "heads", name))
            outputs = task.objective.outputs(columns[task.target])  # type: ignore[union-attr]
            heads[name] = head([models[task.model].out_features, *task.hidden, outputs])  # type: ignore[list-item]
    return Joint(chosen, models, heads)


def head(widths: Sequence[int]) -> nn.Module:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.GELU(), nn.Linear(width_in, width_out)]
    return layers[1] if len(layers) == 2 else nn.Sequential(*layers[1:])
