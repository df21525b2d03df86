"""Which row is seen when: a pure function of (seed, epoch, position), the same for any number of ranks.

A permutation of n rows is a Feistel network over the smallest even number of bits that holds n,
walked until it lands inside n. It takes no memory and any position can be asked for, so a resumed
run goes on with the next unseen row at once.

Source: Black & Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002 (cycle walking); the round
function is the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np

from trainer.spec import digest

_ROUNDS = 6
_BLOCK = 1 << 15


def mix(x: np.ndarray) -> np.ndarray:
    """Well mixed bits of each uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(position: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Image of each position under a permutation of 0..n-1.

    Args:
        position: uint64, below n.
        key: uint64 `[_ROUNDS]`, or `[_ROUNDS, len(position)]` for a permutation of its own per position.
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = position.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for round_key in key:
            k = round_key if np.ndim(round_key) == 0 else round_key[todo]
            left, right = right, left ^ (mix(right ^ k) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


class Order:
    """The endless stream of rows of one dataset: epoch after epoch, each in an order of its own."""

    def __init__(self, rows: int, seed: int, name: str) -> None:
        if rows < 1:
            raise ValueError("an order needs at least one row")
        self.rows = rows
        self._seed = np.uint64(int(digest(seed, name)[:16], 16))
        self._start = -1
        self._block = np.empty(0, dtype=np.int64)

    def _make(self, start: int, count: int) -> np.ndarray:
        place = np.arange(start, start + count, dtype=np.uint64)
        epoch, position = place // np.uint64(self.rows), place % np.uint64(self.rows)
        epochs = np.arange(epoch[0], epoch[-1] + np.uint64(1), dtype=np.uint64)
        base = mix(epochs * np.uint64(0x9E3779B97F4A7C15) + self._seed)
        key = np.stack([mix(base + np.uint64(r + 1)) for r in range(_ROUNDS)])
        return permute(position, self.rows, key[:, 0] if len(epochs) == 1 else key[:, epoch - epoch[0]])

    def take(self, start: int, count: int) -> np.ndarray:
        """Row numbers, int64, of places start..start+count-1 of the stream."""
        if start < self._start or self._start < 0 or start + count > self._start + len(self._block):
            self._start, self._block = start, self._make(start, max(count, _BLOCK))
        return self._block[start - self._start : start - self._start + count]


def share(count: int, parts: int, part: int) -> slice:
    """The `part`-th of `parts` nearly equal, contiguous shares of `count` things."""
    return slice(count * part // parts, count * (part + 1) // parts)
