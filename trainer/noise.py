"""Random numbers that belong to a row: a pure function of the row's number and a name, whatever rank, batch or machine asks.

Shape suffixes: B rows, W numbers of a row.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainer.order import mix

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def normal(row_B: Tensor, width: int, *name: str) -> Tensor:
    """Standard normal numbers `[B, width]`, float32, on the device of `row_B`.

    Args:
        row_B: int64; rows of one number get the same noise under the same name.
        name: what the numbers are for: under other names they are others.

    SplitMix64 turned into normals by the inverse of their distribution function.
    Source: Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    if row_B.is_meta:  # nothing but shapes is asked for
        return torch.empty(len(row_B), width, device=row_B.device)
    with np.errstate(over="ignore"):
        start_B = mix(row_B.cpu().numpy().astype(np.uint64) + _seed(name))
        bits_BW = mix(start_B[:, None] + _GAMMA * np.arange(1, width + 1, dtype=np.uint64))
    # the middle of one of 2^53 equal parts: neither 0 nor 1, where a normal would be infinite
    uniform_BW = ((bits_BW >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(uniform_BW)).float().to(row_B.device)


@lru_cache(maxsize=256)
def _seed(name: tuple[str, ...]) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256("\0".join(name).encode()).digest()[:8], "big"))
