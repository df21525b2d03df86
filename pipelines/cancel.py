"""Delete the training jobs of a run that was ended: its steps may be killed before they can."""

from __future__ import annotations

import time
from collections.abc import Iterator

from components.cluster import Cluster
from components.manifests import RUN, label
from components.sweep import Orphan, orphans, ours
from components.there import over, remove

PATIENCE_S = 60.0
"""How long jobs are looked at again that still seem to be waited for."""
_POLL_S = 1.0


def delete_jobs(cluster: Cluster, run: str) -> Iterator[Orphan]:
    """Jobs of a run as they are deleted; those that another run waits for are left to it.

    That a run is being ended takes a moment to reach its workflow: jobs that still seem to be waited for are looked at again.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for orphan in orphans(cluster, 0.0, time.time()):
            if orphan.job["metadata"].get("labels", {}).get(RUN) == label(run) and remove(cluster, orphan.job, unchanged=True):
                yield orphan
        if not left(cluster, run) or time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def left(cluster: Cluster, run: str) -> list[str]:
    """Jobs of a run that have neither ended nor gone."""
    return [
        f"{job['kind'].lower()}/{job['metadata']['name']}"
        for job in ours(cluster)
        if job["metadata"].get("labels", {}).get(RUN) == label(run) and not over(job) and not job["metadata"].get("deletionTimestamp")
    ]
