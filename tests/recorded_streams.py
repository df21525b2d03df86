"""Watch streams of a real cluster (Kubernetes 1.35, Kubeflow Trainer 2.3, JobSet 0.12, Kueue), as they were recorded.

A line of a recording is a watch event with its resource and the seconds since the start, or what was done to the cluster; the last
one holds the logs of the pods that were left.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recorded"
NAMES = sorted(file.name.removesuffix(".jsonl.gz") for file in FOLDER.glob("*.jsonl.gz"))


@dataclass(frozen=True)
class Recording:
    """`events` are (seconds, watch event) in order; `started_s` is the time of second 0."""

    events: list[tuple[float, dict[str, Any]]]
    resources: list[str]
    logs: dict[str, str]
    started_s: float
    refusal: str | None


@cache
def recording(name: str) -> Recording:
    rows = [json.loads(line) for line in gzip.decompress((FOLDER / f"{name}.jsonl.gz").read_bytes()).splitlines()]
    told = [row for row in rows if "object" in row]
    started_s = 0.0
    if told:
        first = next(row for row in told if row["resource"] == "trainjobs")
        started_s = datetime.fromisoformat(first["object"]["metadata"]["creationTimestamp"]).timestamp() - first["t_s"]
    return Recording(
        events=[(row["t_s"], {"type": row["type"], "object": row["object"]}) for row in told],
        resources=[row["resource"] for row in told],
        logs=rows[-1]["logs"],
        started_s=started_s,
        refusal=next((row["error"] for row in rows if "error" in row), None),
    )
