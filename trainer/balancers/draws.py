"""Random numbers that are a pure function of a seed and a counter: the same on every rank, and after a resume. Not a part."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def generator(seed: int, count: int, device: Any = "cpu") -> torch.Generator:
    """A generator for draw number `count`; neighbours are independent. The global generator is left alone."""
    import torch

    digest = hashlib.sha256(f"{seed} {count}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
