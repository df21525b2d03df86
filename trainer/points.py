"""What a forward pass of a trunk goes through: balance points, and the last shared layer on the way to each.

A model of the user's own says where its balance points are by `trainer.balance_point(z)`; a document by the path of a
module, whose output it is then. Otherwise it is what the model returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from trainer.errors import Fault, LaunchError, UserError, one_of


@dataclass
class Layer:
    """What went into and out of a shared layer in a forward pass."""

    module: nn.Module
    input: Tensor
    output: Tensor
    hidden: bool
    """Whether autograd doesn't see it."""


@dataclass
class Seen:
    """What a forward pass went through, in its order."""

    points: list[Tensor] = field(default_factory=list)
    """Balance points inside the model; none: what it returned is the one."""
    layers: list[Layer] = field(default_factory=list)
    """The last shared layer before each of them."""
    listens: bool = True
    """Whether `balance_point` counts; not where the document names the points."""
    _ran: dict[nn.Module, Layer] = field(default_factory=dict)

    def mark(self, z: Any, said_by: str = "balance_point") -> None:
        """Take a tensor for a balance point."""
        if not isinstance(z, Tensor):
            raise LaunchError.at(said_by, f"got a {type(z).__name__}", "name what gives a tensor")
        if not torch.is_grad_enabled():
            raise reentrant(said_by, "a balance point")
        self.points.append(z)
        if (layer := self._nearest(z)) is not None:
            self.stand(layer)

    def _nearest(self, z: Tensor) -> nn.Module | None:
        """The layer that ran the fewest operations before `z`, of those that led to it."""
        made_by = {layer.output.grad_fn: module for module, layer in self._ran.items() if layer.output.grad_fn is not None}
        known, front = set(), [z.grad_fn]
        while made_by and front:
            for node in front:
                if node in made_by:
                    return made_by[node]
            known.update(front)
            front = [n for node in front if node is not None for n, _ in node.next_functions if n is not None and n not in known]
            front = list(dict.fromkeys(front))
        return None

    def ran(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Note a run of a layer."""
        self._ran.pop(module, None)
        self._ran[module] = Layer(module, args[0].detach(), output, not torch.is_grad_enabled())

    def stand(self, module: nn.Module) -> None:
        """Let the last run of a layer, if there was one, stand for what led to it."""
        if module not in self._ran:
            return
        if self._ran[module].hidden:
            raise reentrant("gram", "the last shared layer")
        self.layers.append(self._ran[module])


_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)


def mark(z: Tensor) -> Tensor:
    """What `trainer.balance_point` does."""
    seen = _SEEN.get()
    if seen is not None and seen.listens:
        seen.mark(z)
    return z


class Place:
    """Where the task gradients of one trunk meet, and which of its layers stand for all of it.

    Args:
        module: the trunk.
        source: of the Gramian; only `representation` needs no layer.
        layer: path of the last shared layer. None: for each balance point the last linear or convolutional layer on the way to it;
            where the model has no balance point inside, the last that it has.
        points: paths of modules whose outputs are the balance points.

    Raises:
        LaunchError: where the module lacks what is named, or has no layer at all.
    """

    def __init__(self, module: nn.Module, source: str, layer: str | None = None, points: Sequence[str] = ()) -> None:
        if missing := lacking(module, "the model", source, layer, points):
            raise LaunchError(Fault(f"gram.{field}" if field else "gram", finding, remedy) for field, finding, remedy in missing)
        named, known = dict(module.named_modules()), layers(module)
        self._points = {path: named[path] for path in points}
        self._fixed = layer is not None
        self._layer = None if source == "representation" else known[layer or next(reversed(known))]
        # the first pass tells whether there are points inside
        self._follow = [] if self._layer is None else [self._layer] if self._fixed else list(known.values())

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """What the forward pass in the body goes through."""
        seen = Seen(listens=not self._points)
        hooks = [part.register_forward_hook(seen.ran) for part in self._follow]
        for path, part in self._points.items():
            hooks.append(part.register_forward_hook(lambda _module, _args, output, path=path: seen.mark(output, path)))
        token = _SEEN.set(seen)
        try:
            yield seen
        finally:
            _SEEN.reset(token)
            for hook in hooks:
                hook.remove()
        if self._layer is not None and (self._fixed or not seen.points):
            seen.layers.clear()
            seen.stand(self._layer)
            self._follow = [self._layer]


def lacking(module: nn.Module, called: str, source: str, layer: str | None, points: Sequence[str]) -> list[tuple[str, str, str]]:
    """What a trunk lacks of what a Gramian is to be made of: field of `gram` (or ""), finding, remedy."""
    found, known = [], list(layers(module))
    if source != "representation":
        if not known:
            found.append(("", f"{called} has no linear or convolutional layer", "write gram: representation"))
        elif layer is not None and layer not in known:
            found.append(("layer", f"{called} has no linear or convolutional layer '{layer}'", one_of(layer, known)))
    named = [name for name, _ in module.named_modules() if name]
    gone = [point for point in points if point not in named]
    return [
        *found,
        *(("point", f"{called} has no module '{point}'", one_of(point, named) if named else "leave out point") for point in gone),
    ]


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of a trunk that may stand for it, by path, in the order they were made."""
    # the last one of attention is a Linear that is never called
    sound = lambda m: isinstance(m, nn.Linear) and not isinstance(m, NonDynamicallyQuantizableLinear)  # noqa: E731
    return {name: m for name, m in module.named_modules() if sound(m) or (isinstance(m, nn.Conv2d) and m.groups == 1)}


def refuse_hidden(ends: Sequence[Tensor]) -> None:
    """Raise LaunchError if a reentrant activation checkpoint led to any of these tensors: gradients inside it would be taken for 0."""
    known: set[Any] = set()
    front = [z.grad_fn for z in ends if z.grad_fn is not None]
    while front:
        if any(type(node).__name__ == "CheckpointFunctionBackward" for node in front):
            raise reentrant("gram", "a shared parameter")
        known.update(front)
        front = list(dict.fromkeys(n for node in front for n, _ in node.next_functions if n is not None and n not in known))


def reentrant(place: str, what: str) -> UserError:
    """The error for what autograd can't look into."""
    finding = f"{what} is inside a reentrant activation checkpoint, where autograd doesn't see it"
    return LaunchError.at(place, finding, "call torch.utils.checkpoint.checkpoint with use_reentrant=False")


def as_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs of a layer as rows `[N, I]`, such that its weight's gradient is `outputs.T @ rows`."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode)  # whatever way it was written: numbers, 'same', circular
    patches = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)  # type: ignore[arg-type]
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def outputs_as_rows(layer: nn.Module, g: Tensor) -> Tensor:
    """Gradients of the outputs of a layer as rows `[N, O]`, in the order of `as_rows`."""
    return g.reshape(-1, g.shape[-1]) if isinstance(layer, nn.Linear) else g.flatten(2).transpose(1, 2).reshape(-1, g.shape[1])


_KEPT: dict[tuple[int, int, torch.device], Tensor] = {}


def directions(width: int, columns: int, device: torch.device) -> Tensor:
    """Random directions `[width, columns]`, the same on every rank and in every step."""
    key = (width, columns, device)
    if key not in _KEPT:
        generator = torch.Generator().manual_seed(width * 65537 + columns)
        _KEPT[key] = (torch.randn(width, columns, generator=generator) / columns**0.5).to(device)
    return _KEPT[key]
