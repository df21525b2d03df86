"""A rank's training rows of one dataset, draw after draw.

Several draws are read at a time: reading many rows costs little more than reading few, and beside a small
model the difference is a good part of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from trainer.order import Order, share

_BLOCK_BYTES = 1 << 20
"""Of tensors that are read at a time: they stay in a core's cache."""
_BLOCK_DRAWS = 64

Read = Callable[[str, np.ndarray], Tensor]
"""Tensor of a column at some rows, by number."""


class Feed:
    """The rows that one rank sees of a dataset.

    Args:
        read: tensor of a column at some rows.
        order: of the rows.
        row_bytes: size of a row as tensors.
        apart: columns whose tensor depends on which rows are read together: they are read draw by draw.
        batch: rows of a draw, over all ranks and micro-batches.
        micros: micro-batches of a step.
        ranks: world size.
        rank: whose rows these are.
    """

    def __init__(
        self, read: Read, order: Order, row_bytes: int, apart: frozenset[str], batch: int, micros: int, ranks: int, rank: int
    ) -> None:
        self._read, self._order, self._apart, self._batch = read, order, apart, batch
        self._shares = [share(batch, micros * ranks, micro * ranks + rank) for micro in range(micros)]
        mine = sum(part.stop - part.start for part in self._shares)
        self._size = max(1, min(_BLOCK_DRAWS, _BLOCK_BYTES // max(1, mine * row_bytes)))
        self._first, self._rows_NB = 0, np.empty((0, batch), np.int64)
        self._held: dict[tuple[int, str], Sequence[Tensor]] = {}

    def take(self, draw: int, micro: int, columns: Sequence[str]) -> dict[str, Tensor]:
        """Columns of the rows of one draw that are this rank's in a micro-batch."""
        place = draw - self._first
        if not 0 <= place < len(self._rows_NB):
            # blocks lie the same in a resumed run: arithmetic differs in the last bit with where in memory rows begin
            place = draw % self._size
            self._first = draw - place
            self._rows_NB = self._order.take(self._first * self._batch, self._size * self._batch).reshape(-1, self._batch)
            self._held = {}
        return {column: self._column(micro, column, place) for column in columns}

    def places(self, micro: int) -> np.ndarray:
        """Where in a draw this rank's rows of a micro-batch are, from 0."""
        part = self._shares[micro]
        return np.arange(part.start, part.stop)

    def _column(self, micro: int, column: str, place: int) -> Tensor:
        if column in self._apart:
            return self._read(column, self._rows_NB[place, self._shares[micro]])
        held = self._held.get((micro, column))
        if held is None:
            rows_NB = self._rows_NB[:, self._shares[micro]]
            block = self._read(column, rows_NB.reshape(-1))
            held = self._held[micro, column] = block.reshape(*rows_NB.shape, *block.shape[1:]).unbind()
        return held[place]


def row_bytes(shapes: Sequence[Sequence[int]]) -> int:
    """Bytes of a row of tensors of these shapes, at most: elements take 8 bytes or less."""
    return sum(8 * math.prod(shape) for shape in shapes)
