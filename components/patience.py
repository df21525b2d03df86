"""How long a job may stay stuck before it is given up. Queues are waited in for as long as it takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from components.situation import Situation

HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
"""No waiting helps: what is asked for is wrong."""


@dataclass(frozen=True)
class Patience:
    """Seconds; None: for ever. The cluster's own deadline stays the last line."""

    image_s: float = 600.0
    """Registries have bad minutes, and a mirror may have to fetch the image first."""
    config_s: float = 120.0
    """A Secret may be created a moment after the job."""
    mount_s: float = 600.0
    refused_s: float = 120.0
    creating_s: float = 3600.0
    """Pulling a large image on a new node takes its time."""
    queue_s: float | None = None
    run_s: float | None = None
    """Of running, `cluster.deadline_hours`: time in a queue, without room or at the start is not counted."""


def gave_up(situation: Situation, now_s: float, patience: Patience) -> str | None:
    """Why it is not waited for any longer; None while it is."""
    if patience.run_s is not None and situation.run_s > patience.run_s:
        return f"ran for more than {patience.run_s:.0f} s"
    if patience.queue_s is not None and situation.state == "queued" and situation.queue_s > patience.queue_s:
        return f"waited in a queue for more than {patience.queue_s:.0f} s"
    blocked = situation.blocked
    if blocked is None or situation.state == "queued":
        return None
    if blocked.reason in HOPELESS:
        return "no waiting helps"
    limit_s = {
        "image": patience.image_s,
        "config": patience.config_s,
        "mount": patience.mount_s,
        "refused": patience.refused_s,
        "creating": patience.creating_s,
    }.get(blocked.kind)
    if limit_s is not None and now_s - blocked.since_s > limit_s:
        return f"no better after {limit_s:.0f} s"
    return None
