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
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.world import World

LAYERS = (nn.Linear, nn.Conv2d)
"""Kinds of layer whose weight gradients can be made of their inputs and the gradients of their outputs."""

Weigh = Callable[[Tensor], Tensor]
"""Weights `[P]` float32 from the Gramian `[P, P]` float32, both on the device; the same on every rank."""


@dataclass(frozen=True)
class Gramian:
    """What the Gramians of a phase are made of, and when the exact one is."""

    source: str
    """`representation`, `last_layer` or `exact`; on steps between two exact ones `last_layer`, which beats a stale exact one."""
    columns: int = 64
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    every: int = 1
    """Steps between exact Gramians where they are the source."""
    probe_every: int | None = None
    """Steps between exact Gramians that are only looked at."""

    def due(self, step: int) -> bool:
        """Whether a step makes an exact Gramian."""
        return (self.source == "exact" and step % self.every == 0) or (self.probe_every is not None and step % self.probe_every == 0)

    def point(self, world: World, tasks: Sequence[str], even_P: Tensor, step: int | None, scale: float) -> Balance:
        """The balance point of a micro-batch; `step` is None but for the first of its step."""
        cheap = "representation" if self.source == "representation" else "last_layer"
        exact = step is not None and self.due(step)
        use_exact = exact and self.source == "exact" and step % self.every == 0  # type: ignore[operator]
        return Balance(world, tasks, "exact" if use_exact else cheap, self.columns, self.layers, scale, exact, even_P)


@dataclass
class Balance:
    """What the balance point of one micro-batch does, and what it found. Made by the step, read by the op."""

    world: World
    tasks: Sequence[str]
    source: str = "representation"
    columns: int = 64
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Last shared layer of each model, where `source` needs it."""
    scale: float = 1.0
    """Loss scale of fp16: gradients come multiplied by it."""
    exact: bool = False
    """Also make the Gramian of all shared parameters, at one backward pass a task: the reference for the cheap ones."""
    even_P: Tensor | None = None
    """What the summed losses are multiplied by to be each rank's share of their means."""
    weigh: Weigh | None = None
    combine: Callable[[Tensor], Tensor] | None = None
    """Instead of weights: one update from the task gradients `[P, N]` of each point, coordinate by coordinate."""
    weight_P: Tensor | None = None
    exact_PP: Tensor | None = None
    gram_PP: Tensor | None = None
    points: list[_Point] = field(default_factory=list)
    _measuring: bool = False

    def views(self, reached: Sequence[Reached]) -> list[dict[str, Tensor]]:
        """A view of each representation for each of its tasks."""
        self.points = [_Point(point.z, [list(self.tasks).index(task) for task in point.tasks], point.layer) for point in reached]
        flat = iter(_Op.apply(self, *(point.z for point in self.points)))
        return [{task: next(flat) for task in point.tasks} for point in reached]

    def measure(self, sums_P: Sequence[Tensor], shared: Sequence[nn.Parameter]) -> None:
        """Make the exact Gramian from the summed losses. Inside the forward pass, before the engine sees an output."""
        self._measuring = True
        try:
            rows = []
            for total, even in zip(sums_P, self.even_P, strict=True):  # type: ignore[arg-type]
                found = torch.autograd.grad(total * even, list(shared), retain_graph=True, allow_unused=True)
                rows.append(
                    torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in zip(found, shared, strict=True)])
                )
        finally:
            self._measuring = False
        (flat,) = self.world.sum(torch.stack(rows).flatten())
        rows_PN = flat.view(len(rows), -1) / self.world.size
        self.exact_PP = rows_PN @ rows_PN.T

    def solve(self, grads: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The gradient of each representation, from those of its tasks."""
        parts = [torch.stack(list(g)).flatten(1) for g in grads]
        if self._measuring:
            return [g.sum(0) for g in parts]
        if self.combine is not None:
            return [self.combine(g_PN) for g_PN in self._padded(parts)]
        self.gram_PP = self._gram(parts) / (self.world.size * self.scale) ** 2
        gram_PP = self.gram_PP if self.source != "exact" or self.exact_PP is None else self.exact_PP
        if self.weigh is None:  # only looked at
            return [g.sum(0) for g in parts]
        self.weight_P = weight_P = self.weigh(gram_PP)
        return [weight_P[point.tasks].to(g) @ g for point, g in zip(self.points, parts, strict=True)]

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
                rows = g.float()
                gram_PP[torch.tensor(point.tasks)[:, None], torch.tensor(point.tasks)] += rows @ rows.T
            return self.world.sum(gram_PP.flatten())[0].view(size, size)
        # the weights of one layer may be reached from several points: their gradients add up before they are squared
        sketches: dict[int, Tensor] = {}
        for point, g in zip(self.points, parts, strict=True):
            for place, sketch in zip(point.tasks, point.sketches(g, self.columns), strict=True):
                layer = sketches.setdefault(id(point.layer.module), torch.zeros(size, sketch.numel(), device=device))  # type: ignore[union-attr]
                layer[place] += sketch.flatten()
        summed = self.world.sum(*(s.flatten() for s in sketches.values()))
        for s in summed:
            rows = s.view(size, -1)
            gram_PP += rows @ rows.T
        return gram_PP


@dataclass
class Reached:
    """A representation, the tasks whose heads stand on it, and the last shared layer on the way to it."""

    z: Tensor
    tasks: Sequence[str]
    layer: _Layer | None


@dataclass
class _Layer:
    """What went into and out of the last shared layer in the forward pass that led to a point."""

    module: nn.Module
    input: Tensor
    output: Tensor


class _Point:
    def __init__(self, z: Tensor, tasks: list[int], layer: _Layer | None) -> None:
        self.z, self.tasks, self.layer = z, tasks, layer

    def sketches(self, grads_TN: Tensor, columns: int) -> Iterator[Tensor]:
        """Gradient of the layer's weights and bias for each task, `[outputs, R + 1]` float32: its input columns are
        projected onto R random directions, so inner products are kept in expectation (Johnson-Lindenstrauss).
        """
        layer = self.layer
        if layer is None:
            raise RuntimeError("the last shared layer was not reached")
        input_NI = _as_rows(layer.module, layer.input).float()
        if columns < input_NI.shape[1]:
            input_NI = input_NI @ _directions(input_NI.shape[1], columns, input_NI.device)
        ones = torch.ones_like(input_NI[:, :1])
        input_NI = torch.cat([input_NI, ones], 1)  # the last column makes the gradient of the bias
        for grad in grads_TN:
            at = grad.view_as(self.z)
            if layer.output is not self.z:
                (at,) = torch.autograd.grad(self.z, layer.output, at, retain_graph=True)
            yield _outputs_as_rows(layer.module, at).float().T @ input_NI


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
    # less than a millionth of what it could be is rounding
    worse = ((gram_PP @ weight_P) < -1e-6 * norm_P * made).float().mean()
    return Look(present, gram_PP / norm_P / norm_P[:, None], cosine, worse)


def last_layer(module: nn.Module, path: str | None) -> nn.Module | None:
    """The last shared layer of a trunk: the one at `path`, or its last linear or convolutional one."""
    if path is not None:
        found = dict(module.named_modules()).get(path)
        return found if isinstance(found, LAYERS) else None
    return next((m for m in reversed(list(module.modules())) if isinstance(m, LAYERS)), None)


@contextmanager
def watch(layer: nn.Module | None) -> Iterator[list[_Layer]]:
    """Note what goes into and out of a layer in each forward pass of the body."""
    seen: list[_Layer] = []
    if layer is None:
        yield seen
        return
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(_Layer(module, args[0].detach(), output)))
    try:
        yield seen
    finally:
        handle.remove()


def _as_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs of a layer as rows `[N, I]`, such that its weight's gradient is `outputs.T @ rows`."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    raise TypeError(f"the last shared layer is a {type(layer).__name__}: name a Linear or an ungrouped Conv2d")


def _outputs_as_rows(layer: nn.Module, g: Tensor) -> Tensor:
    return g.reshape(-1, g.shape[-1]) if isinstance(layer, nn.Linear) else g.flatten(2).transpose(1, 2).reshape(-1, g.shape[1])


_KEPT: dict[tuple[int, int, torch.device], Tensor] = {}


def _directions(width: int, columns: int, device: torch.device) -> Tensor:
    """Random directions `[width, columns]`, the same on every rank and in every step."""
    key = (width, columns, device)
    if key not in _KEPT:
        generator = torch.Generator().manual_seed(width * 65537 + columns)
        _KEPT[key] = (torch.randn(width, columns, generator=generator) / columns**0.5).to(device)
    return _KEPT[key]
