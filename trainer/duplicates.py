"""Rows with equal inputs: found in bounded memory by spilling digests to disk in buckets.

Equal digests fall into one bucket, so a bucket at a time is enough.
"""

from __future__ import annotations

import heapq
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

_BUCKETS = 256  # a billion rows are 160 MB a bucket
_EXAMPLES = 5
_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("label", "<u8"), ("row", "<u8"), ("split", "u1")], align=True)


class Duplicates:
    """Collects a digest per row, then says which rows are equal.

    Args:
        folder: where buckets are kept until `report`; it must be empty.
        splits: names of the splits, by number.
        buckets: files that rows are spilled into; one is in memory at a time.
    """

    def __init__(self, folder: Path, splits: list[str], buckets: int = _BUCKETS) -> None:
        self._folder = folder
        self._splits = splits
        self._open = ExitStack()
        self._files = [self._open.enter_context((folder / f"{bucket:03d}.rows").open("wb")) for bucket in range(buckets)]

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def add(self, digest: np.ndarray, label: np.ndarray, row: np.ndarray, split: np.ndarray) -> None:
        """Add rows: uint64 `[rows, 2]` digest of the inputs, uint64 digest of the labels, row number, number of the split."""
        entries = np.zeros(len(row), _ROW)
        entries["high"], entries["low"], entries["label"], entries["row"], entries["split"] = digest[:, 0], digest[:, 1], label, row, split
        bucket = (digest[:, 0] % np.uint64(len(self._files))).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        entries, cuts = entries[order], np.searchsorted(bucket[order], np.arange(len(self._files) + 1))
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            self._files[number].write(entries[cuts[number] : cuts[number + 1]].tobytes())

    def report(self) -> dict[str, Any]:
        """What is equal to what, as JSON. Rows are counted from 0 in the order of the source.

        `groups` of equal rows, and the `rows` that repeat an earlier one; `within`: the repeats inside each split;
        `across`: rows of the later split that equal one of the earlier; `conflicts`: groups whose labels differ.
        Examples are the first groups, as `[[row, split], ...]`.
        """
        self._open.close()
        names = self._splits
        pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
        total = {"groups": 0, "rows": 0}
        within = dict.fromkeys(names, 0)
        across = dict.fromkeys(pairs, 0)
        conflicts = {"groups": 0, "rows": 0}
        shown: dict[Any, list[tuple[int, Any]]] = {"all": [], "conflicts": [], **{pair: [] for pair in pairs}}
        for file in sorted(self._folder.glob("*.rows")):
            entries = np.fromfile(file, _ROW)
            entries = entries[np.lexsort((entries["row"], entries["low"], entries["high"]))]
            new = np.ones(len(entries), bool)
            new[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
            starts = np.flatnonzero(new)
            sizes = np.diff(np.append(starts, len(entries)))
            for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
                group = entries[start : start + size]
                count = np.bincount(group["split"], minlength=len(names)).tolist()
                total["groups"] += 1
                total["rows"] += size - 1
                kinds: list[Any] = ["all"]
                for number, name in enumerate(names):
                    within[name] += max(0, count[number] - 1)
                for pair in pairs:
                    if count[pair[0]] and count[pair[1]]:
                        across[pair] += count[pair[1]]
                        kinds.append(pair)
                if len(np.unique(group["label"])) > 1:
                    conflicts["groups"] += 1
                    conflicts["rows"] += size
                    kinds.append("conflicts")
                for kind in kinds:
                    _keep(shown[kind], group, names, kind)
        examples = {kind: [example for _, example in sorted(found, reverse=True)] for kind, found in shown.items()}
        return {
            **total,
            "examples": examples["all"],
            "within": within,
            "across": {f"{names[a]}-{names[b]}": {"rows": across[a, b], "examples": examples[a, b]} for a, b in pairs},
            "conflicts": {**conflicts, "examples": examples["conflicts"]},
        }


def _keep(found: list[tuple[int, Any]], group: np.ndarray, names: list[str], kind: Any) -> None:
    """Keep the groups that start first; `found` is a heap of the negative first rows."""
    first = int(group["row"][0])
    if len(found) == _EXAMPLES and -found[0][0] < first:
        return
    if isinstance(kind, tuple):  # one row of either split says it
        group = group[np.sort([int(np.argmax(group["split"] == split)) for split in kind])]
    elif kind == "conflicts":
        group = group[np.sort(np.unique(group["label"], return_index=True)[1])]
    example = [[int(entry["row"]), names[entry["split"]]] for entry in group[:_EXAMPLES]]
    (heapq.heappush if len(found) < _EXAMPLES else heapq.heappushpop)(found, (-first, example))
