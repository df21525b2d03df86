"""What objectives that learn from other tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def all_rows(columns: Mapping[str, Tensor]) -> Tensor:
    """How many rows there are, labelled or not: a float32 scalar."""
    import torch

    some = next(iter(columns.values()))
    return torch.tensor(float(len(some)), device=some.device)
