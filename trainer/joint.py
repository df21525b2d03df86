"""The models and heads of a document as one module.

Shape suffixes: B rows, D width of a representation, K outputs of a head, T tasks.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.balance import Balance, Reached
from trainer.nets import Pool
from trainer.parts import Objective, Site
from trainer.spec import JointSpec, Task
from trainer.view import Look, Shared

Fitted = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Fitted columns by dataset and column."""

Batches = Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""A batch of each dataset: its input columns and its target columns."""


class Joint(nn.Module):
    """Trunks shared between tasks, a head for each.

    Weights are named `models.<model>...` and `heads.<task>...`. Tasks with the same dataset, model and inputs
    share one forward pass of the trunk. A model none of whose parameters learns stays in evaluation mode: neither
    dropout nor running statistics are for what is frozen.

    Where several engines train parts of one document, each has a Joint of its own parts, and calls the others' as `foreign`:
    they are no submodules of it, so its engine neither shards nor updates them.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        models: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        foreign_models: Mapping[str, nn.Module] | None = None,
        foreign_heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.models = nn.ModuleDict(models)
        self.heads = nn.ModuleDict(heads)
        # in plain dicts, which nn.Module does not look into
        self._models = {**models, **(foreign_models or {})}
        self._heads = {**heads, **(foreign_heads or {})}
        self._foreign = [*(foreign_models or {}).values(), *(foreign_heads or {}).values()]
        self.ranks = 1
        """World size in training, where wide objectives gather rows."""
        self.resting: frozenset[str] | None = None
        """Models that no phase trains; None: those of which no parameter requires a gradient."""
        self.balance: Balance | None = None
        """The balance point of the micro-batch at hand; None: gradients of tasks add up as they are."""
        self._sample = (next(itertools.chain(self.heads.parameters(), self.parameters())),)  # in a tuple, or it would be registered twice
        self._passes: dict[tuple[str, ...], list[tuple[str, list[str], list[str]]]] = {}
        self._wides: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def split(self, groups: Sequence[tuple[set[str], set[str]]]) -> list[Joint]:
        """A Joint for each group of models and heads, which call each other's. What is in no group goes to the first."""
        left = (
            self._models.keys() - {m for models, _ in groups for m in models},
            self._heads.keys() - {h for _, heads in groups for h in heads},
        )
        made = []
        for i, (models, heads) in enumerate(groups):
            mine = (models | left[0], heads | left[1]) if i == 0 else (models, heads)
            own, foreign = zip(
                *(
                    ({n: m for n, m in parts.items() if n in chosen}, {n: m for n, m in parts.items() if n not in chosen})
                    for parts, chosen in zip((self._models, self._heads), mine, strict=True)
                ),
                strict=True,
            )
            joint = Joint(self.tasks, own[0], own[1], foreign[0], foreign[1])
            joint.resting = frozenset(left[0])
            made.append(joint)
        return made

    def model(self, name: str) -> nn.Module:
        """A model, of this engine or another."""
        return self._models[name]

    def head(self, task: str) -> nn.Module:
        """The head of a task, of this engine or another."""
        return self._heads[task]

    def train(self, mode: bool = True) -> Joint:
        """As `nn.Module.train`, but for frozen models."""
        super().train(mode)
        for part in self._foreign:
            part.train(mode)
        for name, model in self._models.items():
            learns = [p.requires_grad for p in model.parameters()]
            if (learns and not any(learns)) if self.resting is None else name in self.resting:
                model.eval()
        return self

    def statistics(self) -> list[Tensor]:
        """Saved buffers of all that it calls."""
        found: list[Tensor] = []
        for part in (self, *self._foreign):
            kept = part.state_dict()
            found += [b for name, b in part.named_buffers() if name in kept]
        return found

    def outputs(self, tasks: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of tasks on one dataset, from its columns: head outputs `[B, K]` of plain tasks, what wide ones predict."""
        plain, wide = self._kinds(tuple(tasks))
        points = list(self._reach(plain, inputs))
        found = {name: self._heads[name](point.z) for point in points for name in point.tasks}
        if wide:
            shared = self._shared(points, found, inputs)
            found |= {name: self._objective(name).scores(Look(name, shared))[0] for name in wide}
        return found

    def judged(self, task: str, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Predictions of a task and the truth they are judged against, from columns with the target among them."""
        objective, target = self._objective(task), self.tasks[task].target
        if objective.wide:
            score, truth = objective.scores(Look(task, self._shared([], {}, columns)))
        else:
            score, truth = objective.predict(self.outputs([task], columns)[task]), None
        return score, columns[target] if truth is None else truth  # type: ignore[index]

    def features(self, task: str, values: Tensor) -> Tensor:
        """Predictions or truths of a task as its metrics get them."""
        return self._objective(task).features(Look(task, self._shared([], {}, {})), values)

    def _objective(self, task: str) -> Objective:
        found = self.tasks[task].objective
        assert found is not None  # of a resolved document
        return found

    def _kinds(self, tasks: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Plain tasks and wide ones."""
        if tasks not in self._wides:
            wide = tuple(name for name in tasks if self._objective(name).wide)
            self._wides[tasks] = tuple(name for name in tasks if name not in wide), wide
        return self._wides[tasks]

    def _shared(self, points: Sequence[Reached], outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> Shared:
        """Forward results that wide objectives start from."""
        shared = Shared(self, columns, self._sample[0].dtype)
        for point in points:
            said = self.tasks[point.tasks[0]]
            shared.reached[said.model, tuple(said.inputs), False] = point.z  # type: ignore[index]
        shared.outputs.update(outputs)
        return shared

    def _reach(self, tasks: Sequence[str], inputs: Mapping[str, Tensor]) -> Iterator[Reached]:
        """The representation that each trunk makes, with the tasks whose heads stand on it."""
        if not tasks:
            return
        dtype = self._sample[0].dtype  # bf16 where the engine made it so
        for model, columns, names in self._trunks(tuple(tasks)):
            place = self.balance.places.get(model) if self.balance and self.training else None
            with place.watch() if place else nullcontext() as seen:
                z_BD = self._models[model](*(x.to(dtype) if x.is_floating_point() else x for x in (inputs[c] for c in columns)))
            yield Reached(z_BD.to(dtype), names, seen)

    def _trunks(self, tasks: tuple[str, ...]) -> list[tuple[str, list[str], list[str]]]:
        """Model, columns and tasks of each forward pass of a trunk."""
        if tasks not in self._passes:
            trunk = lambda name: (self.tasks[name].model or "", self.tasks[name].inputs)  # noqa: E731
            groups = itertools.groupby(sorted(tasks, key=trunk), key=trunk)
            self._passes[tasks] = [(model, columns, list(names)) for (model, columns), names in groups]
        return self._passes[tasks]

    def forward(self, tasks: Sequence[str], batches: Batches, outputs: bool = False) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Summed losses `[T]` of `tasks`, in their order, float32.

        With `outputs` also what the heads of plain tasks gave, and the predictions and truth of wide ones.
        """
        plain, wide = self._kinds(tuple(tasks))
        by_data = {
            data: list(self._reach([name for name in plain if self.tasks[name].data == data], inputs))
            for data, (inputs, _) in batches.items()
        }
        points = [point for found in by_data.values() for point in found]
        balance = self.balance if self.training else None
        views = balance.views(points) if balance else [dict.fromkeys(point.tasks, point.z) for point in points]
        totals: dict[str, Tensor] = {}
        found: dict[str, Any] = {}
        for name, z_BD in (pair for view in views for pair in view.items()):
            task = self.tasks[name]
            found[name] = self._heads[name](z_BD)
            totals[name] = task.objective.total(found[name], batches[task.data][1][task.target])  # type: ignore[union-attr,index]
        if wide:
            self._wide(wide, batches, by_data, totals, found, outputs)
        if balance and balance.exact:
            models = dict.fromkeys(self.tasks[name].model for name in tasks)
            balance.measure([totals[name] for name in tasks], [p for m in models for p in self.models[m].parameters() if p.requires_grad])  # type: ignore[index]
        total_T = torch.stack([totals[name] for name in tasks])
        return (total_T, found) if outputs else total_T

    def _wide(
        self,
        tasks: Sequence[str],
        batches: Batches,
        points: Mapping[str, Sequence[Reached]],
        totals: dict[str, Tensor],
        found: dict[str, Any],
        outputs: bool,
    ) -> None:
        """Losses and, where asked for, predictions of wide tasks, in the order of the document: ranks gather in step."""
        shared: dict[str, Shared] = {}
        for name in tasks:
            data = self.tasks[name].data
            if data not in shared:
                inputs, targets = batches[data]
                mine = {task: found[task] for point in points[data] for task in point.tasks}
                shared[data] = self._shared(points[data], mine, {**inputs, **targets})
            view, objective = Look(name, shared[data]), self._objective(name)
            totals[name] = objective.loss(view)
            if outputs and self.tasks[name].judged:
                score, truth = objective.scores(view)
                pair = score, view.columns[self.tasks[name].target] if truth is None else truth  # type: ignore[index]
                found[name] = tuple(objective.features(view, values) for values in pair) if objective.looks else pair


def counted(task: Task, batch: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> Tensor:
    """How many rows of a micro-batch count for a task: a float32 scalar."""
    objective = task.objective
    assert objective is not None  # of a resolved document
    if objective.wide:
        return objective.rows({**batch[0], **batch[1]}, task.target)
    return objective.count(batch[1][task.target])  # type: ignore[index]


def blank(column: Mapping[str, Any], device: torch.device | str) -> Tensor:
    """One row of zeros of a fitted column, as a model sees it."""
    whole = column["kind"] in ("category", "text")
    return torch.zeros(1, *column["shape"], dtype=torch.int64 if whole else torch.float32, device=device)


def known(truth: Tensor) -> Tensor:
    """`[B]` bool: rows whose truth is there: not of nothing but whole numbers below 0, or NaN."""
    there = truth.isfinite() if truth.is_floating_point() else truth >= 0
    return there if truth.dim() == 1 else there.flatten(1).any(1)


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def build(
    spec: JointSpec, fitted: Fitted, tasks: Sequence[str] | None = None, seed: int = 0, models_kept: Collection[str] | None = None
) -> Joint:
    """A freshly initialised module for some tasks of a resolved document (default: all).

    Each model and head is initialised from (seed, its name) alone, so that joint and independent
    training start from the same weights. With `models_kept` other models are left out: what is published has those alone that
    predictions need.
    """
    named = list(spec.tasks if tasks is None else tasks)
    needed = {other for name in named for other in spec.reads(name)}
    # what was asked for in its order, then what that reads
    chosen = {name: spec.tasks[name] for name in dict.fromkeys([*named, *(name for name in spec.tasks if name in needed)])}
    models: dict[str, nn.Module] = {}
    heads: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for name, task in chosen.items():
            columns, objective = fitted[task.data], task.objective
            for model, inputs in spec.models_of(name).items():
                if model not in models and (models_kept is None or model in models_kept):
                    torch.manual_seed(seed_of(seed, "models", model))
                    models[model] = spec.models[model].build([columns[column] for column in inputs])
            torch.manual_seed(seed_of(seed, "heads", name))
            widths, tokens = (
                {model: getattr(models[model], features) for model in spec.models_of(name) if hasattr(models.get(model), features)}
                for features in ("out_features", "token_features")
            )
            own = objective.head(Site(name, task.model, task.inputs, task.target, columns, widths, tokens))  # type: ignore[union-attr,arg-type]
            if own is not None:
                heads[name] = own
            elif not objective.wide:  # type: ignore[union-attr]
                outputs = objective.outputs(columns[task.target])  # type: ignore[union-attr,index]
                trunk = models[task.model]  # type: ignore[index]
                maps = getattr(trunk, "makes_map", False)
                made = head([trunk.out_features * (2 if maps else 1), *task.hidden, outputs])  # type: ignore[operator,list-item]
                heads[name] = nn.Sequential(Pool(), made) if maps else made
    return Joint(chosen, models, heads)


def head(widths: Sequence[int]) -> nn.Module:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.GELU(), nn.Linear(width_in, width_out)]
    return layers[1] if len(layers) == 2 else nn.Sequential(*layers[1:])
