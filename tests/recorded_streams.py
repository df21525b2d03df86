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


VALUE_ERROR = "ValueError: task digit: target 12 is not below classes=10"
VERDICTS = {
    # name: state, verdict, reason, who failed first, what is said of it, restarts
    "complete": ("succeeded", "succeeded", "Complete", "", "all 2 nodes finished", 0),
    "exception-rank1": ("failed", "failed", "ValueError", "rank 1", VALUE_ERROR, 0),
    "exception-restarts": ("failed", "failed", "ValueError", "rank 1", VALUE_ERROR, 2),
    "oom-rank1": ("failed", "failed", "OOMKilled", "rank 1", "more memory than its limit, 256Mi", 0),
    "image-pull": ("starting", "waiting", "ImagePullBackOff", "rank 0", "image registry.invalid/none:1 can't be pulled", 0),
    "unschedulable": ("queued", "waiting", "Unschedulable", "rank 0", "2 Insufficient nvidia.com/gpu", 0),
    "suspend-resume": ("succeeded", "succeeded", "Complete", "", "", 0),
    "suspend-running": ("succeeded", "succeeded", "Complete", "", "", 0),
    "evicted": ("succeeded", "succeeded", "Complete", "", "", 1),
    "pod-deleted": ("succeeded", "succeeded", "Complete", "", "", 1),
    "trainjob-deleted": ("deleted", "deleted", "Deleted", "", "the TrainJob was deleted while it was running", 0),
    "kueue-queued": ("succeeded", "succeeded", "Complete", "", "", 0),
    "deadline": ("failed", "failed", "DeadlineExceeded", "", "ran for more than 8 s", 0),
}
