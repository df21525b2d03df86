"""A model that takes its time as long as its rank is alone, or until a file says that it may hurry: so that others can come back."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

PAUSE_S = 0.2


class Dawdling(nn.Module):
    def __init__(self, width: int, hurry: str) -> None:
        super().__init__()
        self.linear, self.hurry, self.out_features = nn.Linear(width, 8), hurry, 8

    def forward(self, x: Tensor) -> Tensor:
        if not (dist.is_initialized() and dist.get_world_size() > 1 and os.path.exists(self.hurry)):
            time.sleep(PAUSE_S)
        return self.linear(x).relu()


def model(inputs: Sequence[Any], hurry: str) -> nn.Module:
    (column,) = inputs
    return Dawdling(column["shape"][0], hurry)
