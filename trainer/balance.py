"""The balance point: one autograd op between the shared trunks and the heads, where task gradients meet and are weighed.

Its forward hands each task its own view of each representation. Its backward is called once, with the gradients of
all tasks at all points; it makes their Gramian, sums it over ranks, asks the balancer for weights, and passes the
weighted sum on. So a step stays one backward pass, however many tasks there are, parameters may be sharded in any
way, and heads keep their own unweighted gradients.

Shape suffixes: P tasks present in the step, B rows, N all elements of a task's gradient, R columns of a sketch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import LaunchError
from trainer.points import Place, Seen, as_rows, directions, outputs_as_rows, reentrant, refuse_hidden
from trainer.world import World

Weigh = Callable[[Tensor], Tensor]
"""Weights `[P]` float32 from the Gramian `[P, P]` float32, both on the device; the same on every rank."""


@dataclass(frozen=True)
class Gramian:
    """What the Gramians of a phase are made of, and when the exact one is."""

    source: str
    """`representation`, `last_layer` or `exact`; on steps between two exact ones `last_layer`, which beats a stale exact one."""
    columns: int = 64
    places: Mapping[str, Place] = field(default_factory=dict)
    """By model. Without one, the representation is what the model returns."""
    every: int = 1
    """Steps between exact Gramians where they are the source."""
    probe_every: int | None = None
    """Steps between exact Gramians that are only looked at."""

    def point(self, world: World, tasks: Sequence[str], even_P: Tensor, step: int, micro: int, scale: float) -> Balance:
        """The balance point of a micro-batch. All of a step are weighed alike; the first alone is looked at."""
        cheap = "representation" if self.source == "representation" else "last_layer"
        weighed = self.source == "exact" and step % self.every == 0
        looked_at = micro == 0 and self.probe_every is not None and step % self.probe_every == 0
        return Balance(world, tasks, "exact" if weighed else cheap, self.columns, self.places, scale, weighed or looked_at, even_P)


@dataclass
class Balance:
    """What the balance point of one micro-batch does, and what it found. Made by the step, read by the op."""

    world: World
    tasks: Sequence[str]
    source: str = "representation"
    columns: int = 64
    places: Mapping[str, Place] = field(default_factory=dict)
    scale: float = 1.0
    """Loss scale of fp16: gradients come multiplied by it."""
    exact: bool = False
    """Also make the Gramian of all shared parameters, at one backward pass a task: the reference for the cheap ones."""
    even_P: Tensor | None = None
    """What the summed losses are multiplied by to be each rank's share of their means."""
    repeatable: Callable[[], AbstractContextManager[None]] = nullcontext
    """Surrounds each backward pass through a part of the model that is gone through again."""
    weigh: Weigh | None = None
    combine: Callable[[Tensor], Tensor] | None = None
    """Instead of weights: one update from the task gradients `[P, N]` of each point, coordinate by coordinate."""
    weight_P: Tensor | None = None
    exact_PP: Tensor | None = None
    gained_P: Tensor | None = None
    """Inner products of the exact task gradients with the update that `combine` made, where there is an exact look."""
    moved: Tensor | None = None
    """Length of that update."""
    gram_PP: Tensor | None = None
    points: list[_Point] = field(default_factory=list)
    _measuring: bool = False
    _exact: tuple[Sequence[nn.Parameter], Tensor] | None = None

    def views(self, reached: Sequence[Reached]) -> list[dict[str, Tensor]]:
        """A view of each representation for each of its tasks."""
        place = {task: p for p, task in enumerate(self.tasks)}
        self.points = [_Point(point.z, [place[task] for task in point.tasks], point.seen or Seen(), self.repeatable) for point in reached]
        flat = iter(_Op.apply(self, *(point.z for point in self.points)))
        return [{task: next(flat) for task in point.tasks} for point in reached]

    def measure(self, sums_P: Sequence[Tensor], shared: Sequence[nn.Parameter]) -> None:
        """Make the exact Gramian from the summed losses. Inside the forward pass, before the engine sees an output."""
        refuse_hidden([point.z for point in self.points])
        self._measuring = True
        try:
            rows = []
            for total, even in zip(sums_P, self.even_P, strict=True):  # type: ignore[arg-type]
                with self.repeatable():
                    rows.append(torch.cat([g.flatten().float() for g in _gradients(total * even, shared)]))
        finally:
            self._measuring = False
        (flat,) = self.world.sum(torch.stack(rows).flatten())
        rows_PN = flat.view(len(rows), -1) / self.world.size
        self.exact_PP = rows_PN @ rows_PN.T
        self._exact = shared, rows_PN

    def solve(self, grads: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The gradient of each representation, from those of its tasks."""
        parts = [torch.stack(list(g)).flatten(1) for g in grads]
        if self._measuring:
            return [g.sum(0) for g in parts]
        exact, self._exact = self._exact, None
        if self.combine is not None:
            updates = [self.combine(g_PN) for g_PN in self._padded(parts)]
            if exact is not None:
                self._follow(updates, *exact)
            return updates
        if self.weigh is None:  # only looked at
            return [g.sum(0) for g in parts]
        gram_PP = self.exact_PP
        if self.source != "exact" or gram_PP is None:
            self.gram_PP = gram_PP = self._gram(parts) / (self.world.size * self.scale) ** 2
        self.weight_P = weight_P = self.weigh(gram_PP)
        return [weight_P[point.tasks].to(g) @ g for point, g in zip(self.points, parts, strict=True)]

    def _follow(self, updates: Sequence[Tensor], shared: Sequence[nn.Parameter], rows_PN: Tensor) -> None:
        """What updates of the representations do to the shared parameters, and by them to each task."""
        pairs = [(point.z, update.view_as(point.z)) for point, update in zip(self.points, updates, strict=True)]
        ends, updates = zip(*pairs, strict=True)
        with self.repeatable():
            found = _gradients(ends, shared, updates)
        (flat,) = self.world.sum(torch.cat([g.flatten().float() for g in found]))
        update_N = flat / (self.world.size * self.scale)
        self.gained_P, self.moved = rows_PN @ update_N, update_N.norm()

    def _padded(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        for point, g in zip(self.points, parts, strict=True):
            whole = g.new_zeros(len(self.tasks), g.shape[1])
            yield whole.index_copy(0, torch.tensor(point.tasks, device=g.device), g)

    def _gram(self, parts: Sequence[Tensor]) -> Tensor:
        """Inner products of the task gradients, summed over points and ranks."""
        size, device = len(self.tasks), parts[0].device
        gram_PP = torch.zeros(size, size, device=device)
        if self.source == "representation":
            for point, g in zip(self.points, parts, strict=True):
                for inner in point.inside(g):
                    rows = inner.float()
                    gram_PP[torch.tensor(point.tasks)[:, None], torch.tensor(point.tasks)] += rows @ rows.T
            return self.world.sum(gram_PP.flatten())[0].view(size, size)
        # the weights of one layer may be reached from several points: their gradients add up before they are squared
        sketches: dict[nn.Module, Tensor] = {}
        for point, g in zip(self.points, parts, strict=True):
            for task, layer, sketch in point.sketches(g, self.columns):
                if layer not in sketches:
                    sketches[layer] = torch.zeros(size, sketch.numel(), device=device)
                sketches[layer][task] += sketch.flatten()
        summed = self.world.sum(*(s.flatten() for s in sketches.values()))
        for s in summed:
            rows = s.view(size, -1)
            gram_PP += rows @ rows.T
        return gram_PP


@dataclass
class Reached:
    """A representation, the tasks whose heads stand on it, and what was seen on the way to it."""

    z: Tensor
    tasks: Sequence[str]
    seen: Seen | None = None


class _Point:
    def __init__(self, z: Tensor, tasks: list[int], seen: Seen, repeatable: Callable[[], AbstractContextManager[None]]) -> None:
        self.z, self.tasks, self.seen, self.repeatable = z, tasks, seen, repeatable

    def inside(self, grads_TN: Tensor) -> Iterator[Tensor]:
        """Task gradients `[T, N]` at each balance point inside the model; where there is none, at what it returned."""
        points = self.seen.points or [self.z]
        if len(points) == 1 and points[0] is self.z:
            yield grads_TN
            return
        found = [self._back(grad, points) for grad in grads_TN]
        for rows in zip(*found, strict=True):
            yield torch.stack(rows).flatten(1)

    def sketches(self, grads_TN: Tensor, columns: int) -> Iterator[tuple[int, nn.Module, Tensor]]:
        """Place of a task, layer, and the gradient of that one's weights and bias for the task, `[outputs, R + 1]` float32.

        The input columns are projected onto R random directions, so inner products are kept in expectation (Johnson-Lindenstrauss).
        """
        layers = self.seen.layers
        if not layers:
            raise LaunchError.at("gram", "the last shared layer was not reached", "name one that the forward pass uses as gram.layer")
        inputs = []
        for layer in layers:
            input_NI = as_rows(layer.module, layer.input).float()
            if columns < input_NI.shape[1]:
                input_NI = input_NI @ directions(input_NI.shape[1], columns, input_NI.device)
            inputs.append(torch.cat([input_NI, torch.ones_like(input_NI[:, :1])], 1))  # the last column makes the gradient of the bias
        for task, grad in zip(self.tasks, grads_TN, strict=True):
            for layer, input_NI, at in zip(layers, inputs, self._back(grad, [layer.output for layer in layers]), strict=True):
                yield task, layer.module, outputs_as_rows(layer.module, at).float().T @ input_NI

    def _back(self, grad_N: Tensor, to: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of one task at tensors that led to the representation; zeros where it doesn't depend on one."""
        grad = grad_N.view_as(self.z)
        if len(to) == 1 and to[0] is self.z:
            return [grad]
        with self.repeatable():
            return _gradients(self.z, to, grad)


def _gradients(of: Tensor | Sequence[Tensor], to: Sequence[Tensor], grad: Tensor | Sequence[Tensor] | None = None) -> list[Tensor]:
    """Gradients at tensors, zeros where `of` doesn't depend on one; what led from them to `of` is kept for the backward pass."""
    try:
        found = torch.autograd.grad(of, list(to), grad, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise reentrant("gram", "what comes after a balance point or the last shared layer") from error
    # a parameter that ZeRO-3 shards is empty outside of the passes that need it
    whole = [getattr(x, "ds_shape", x.shape) for x in to]
    return [x.new_zeros(shape) if g is None else g for x, shape, g in zip(to, whole, found, strict=True)]


class _Op(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, balance: Balance, *zs: Tensor) -> tuple[Tensor, ...]:
        ctx.balance = balance
        return tuple(z.view_as(z) for z, point in zip(zs, balance.points, strict=True) for _ in point.tasks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        balance: Balance = ctx.balance
        flat = iter(grads)
        by_point = [list(itertools.islice(flat, len(point.tasks))) for point in balance.points]
        merged = balance.solve(by_point)
        found = tuple(g.view_as(point.z) for g, point in zip(merged, balance.points, strict=True))
        if not balance._measuring:
            balance.points = []
        return None, *found


@dataclass(frozen=True)
class Look:
    """What an exact look at the gradients of the tasks present found, on all shared parameters."""

    present: Sequence[int]
    """Places of the tasks among those of the phase."""
    cosine_PP: Tensor
    """Cosines of the task gradients with one another."""
    cosine: Tensor
    """Cosine of the update made with the one that exact gradients would have given; 1 where they are what was weighed."""
    worse: Tensor
    """Share of the tasks whose loss the update makes worse, to first order."""


def look_at(gram_PP: Tensor, weight_P: Tensor, wanted_P: Tensor, present: Sequence[int]) -> Look:
    """Judge the weights of a step by the exact Gramian, beside those that the balancer would have made of it."""
    tiny = torch.finfo(gram_PP.dtype).tiny
    norm_P = gram_PP.diagonal().clamp_min(0).sqrt().clamp_min(tiny)
    made, wanted = ((w_P @ gram_PP @ w_P).clamp_min(0).sqrt() for w_P in (weight_P, wanted_P))
    cosine = (weight_P @ gram_PP @ wanted_P) / (made * wanted).clamp_min(tiny)
    return Look(present, gram_PP / norm_P / norm_P[:, None], cosine, _worse(gram_PP @ weight_P, norm_P, made))


def look_at_update(gram_PP: Tensor, gained_P: Tensor, moved: Tensor, present: Sequence[int]) -> Look:
    """Judge an update that is no weighted sum of the task gradients, by its inner products with them and its length."""
    norm_P = gram_PP.diagonal().clamp_min(0).sqrt().clamp_min(torch.finfo(gram_PP.dtype).tiny)
    return Look(present, gram_PP / norm_P / norm_P[:, None], torch.ones_like(moved), _worse(gained_P, norm_P, moved))


def _worse(gained_P: Tensor, norm_P: Tensor, moved: Tensor) -> Tensor:
    # less than a millionth of what it could be is rounding
    return (gained_P < -1e-6 * norm_P * moved).float().mean()
