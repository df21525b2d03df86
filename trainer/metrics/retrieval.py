"""What metrics of retrieval share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# N rows, D width

_ROWS = 1024  # compared with all others at a time
_EQUAL = 1e-6  # equal items differ in the last bits with the batch they were encoded in


def found(asked_ND: Tensor, among_ND: Tensor, k: int) -> Tensor:
    """1 for each row of `asked_ND` whose own row of `among_ND` is among the `k` most similar to it, else 0: float32 `[N]`.

    Ties count as found.
    """
    import torch

    better = []
    for start in range(0, len(asked_ND), _ROWS):
        alike = asked_ND[start : start + _ROWS].float() @ among_ND.float().T
        own = alike.diagonal(start)[:, None]
        better.append((alike > own + _EQUAL).sum(1))
    return (torch.cat(better) < k).float()
