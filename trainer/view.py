"""What a wide objective reads of one micro-batch: forward results by model and columns, each made once.

Shape suffixes: B rows of this rank, N rows of all ranks, D width of a representation, L tokens, K outputs of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer import noise
from trainer.parts import ROW

if TYPE_CHECKING:
    from trainer.joint import Joint
    from trainer.parts import Objective


class Shared:
    """Forward results of one micro-batch of one dataset.

    Args:
        joint: whose models and heads are called.
        columns: tensors by column name.
        dtype: floating-point type of the models.
    """

    def __init__(self, joint: Joint, columns: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.joint, self.columns, self._dtype = joint, columns, dtype
        self.reached: dict[tuple[str, tuple[str, ...], bool], Tensor] = {}
        """Representations by model, columns, and whether they are tokens."""
        self.outputs: dict[str, Tensor] = {}
        """Head outputs of plain tasks."""

    @cached_property
    def rows(self) -> Tensor:
        """Numbers of the rows, `[B]`; their places where nobody said any."""
        if ROW in self.columns:
            return self.columns[ROW]
        some = next(iter(self.columns.values()), torch.zeros(1))
        return torch.arange(len(some), device=some.device)

    def z(self, model: str, columns: Sequence[str], tokens: bool = False) -> Tensor:
        """What a model makes of columns."""
        key = (model, tuple(columns), tokens)
        if key not in self.reached:
            inputs = (self.columns[c] for c in columns)
            cast = [x.to(self._dtype) if x.is_floating_point() else x for x in inputs]
            called = self.joint.model(model)
            self.reached[key] = (called(*cast, tokens=True) if tokens else called(*cast)).to(self._dtype)
        return self.reached[key]

    def output(self, task: str) -> Tensor:
        """What the head of a plain task gives."""
        if task not in self.outputs:
            said = self.joint.tasks[task]
            assert said.model is not None  # of a checked document
            self.outputs[task] = self.joint.head(task)(self.z(said.model, said.inputs))
        return self.outputs[task]


class Look:
    """`trainer.parts.View` of one task."""

    def __init__(self, task: str, shared: Shared) -> None:
        self.task, self._shared = task, shared
        self.training = shared.joint.training
        self.z, self.output = shared.z, shared.output

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """Tensors of the columns at hand."""
        return self._shared.columns

    @property
    def target(self) -> Tensor | None:
        """The task's target column, where it has one and it is at hand."""
        name = self._shared.joint.tasks[self.task].target
        return self._shared.columns.get(name) if name is not None else None

    def head(self, task: str | None = None) -> nn.Module:
        """The module that the objective of a task made."""
        return self._shared.joint.head(task or self.task)

    def model(self, name: str) -> nn.Module:
        """A model of the document."""
        return self._shared.joint.model(name)

    def objective(self, task: str) -> Objective:
        """The objective of a task."""
        found = self._shared.joint.tasks[task].objective
        assert found is not None  # of a resolved document
        return found

    def noise(self, width: int, name: str = "") -> Tensor:
        """Standard normal numbers that belong to the rows."""
        return noise.normal(self._shared.rows, width, self.task, name)

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """Rows of all ranks, and where this one's begin."""
        return gather(rows, self._shared.joint.ranks)


def gather(rows: Tensor, ranks: int) -> tuple[Tensor, int]:
    """Rows of all ranks `[N, ...]` in rank order, with gradients through the gather, and where this rank's begin.

    The gradient of a rank's rows is the sum of what all ranks' losses send back to them, as it is when one process holds all rows.
    """
    if ranks == 1:
        return rows, 0
    counts = torch.zeros(ranks, dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    sizes: list[int] = counts.tolist()
    start = sum(sizes[: dist.get_rank()])
    if not rows.is_floating_point():
        return _Gather.together(rows, sizes), start
    return _Gather.apply(rows, sizes), start  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def together(rows: Tensor, sizes: list[int]) -> Tensor:
        # collectives want equal shapes: shorter parts are padded, and cut off again
        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _Gather.together(rows.detach(), sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return total[start : start + ctx.sizes[rank]], None
