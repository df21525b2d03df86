"""Training that goes on with fewer nodes when some are lost, by torchrun's own rendezvous.

Ranks that lose a peer end with an error; torchrun starts those that are left again as a smaller world, and they go on from
the newest checkpoint, which fits any number of ranks. Nodes that come back are let in in the same way. The first node keeps
the rendezvous: without it nobody can meet, and whoever started the nodes has to start them again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "COTRAIN_ELASTIC"
"""Set for ranks whose world may change: one that is asked to stop then ends with an error, so that its peers go on without it."""

WAIT_S = {"join_timeout": 1800, "last_call_timeout": 30, "keep_alive_interval": 5, "keep_alive_max_attempt": 3}
"""For the fewest nodes to come; for more of them after that; between signs of life; and how many of those may be missing."""

_INCIDENT_S = 60.0


def is_elastic(options: Sequence[str]) -> bool:
    """Whether options of torchrun let the number of nodes change: `--nnodes=min:max`."""
    return any(option.startswith("--nnodes=") and ":" in option for option in options)


def rendezvous(options: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """What an elastic node adds to torchrun's options: who keeps the rendezvous, and how long one waits; nothing for another node.

    torchrun would find out who keeps it by comparing names, which may not be known yet when a pod starts: then nobody does.
    `PET_RDZV_CONF` (`keep_alive_interval=1,...`) changes how long one waits.
    """
    if not is_elastic(options):
        return []
    said = dict(pair.split("=", 1) for pair in environ.get("PET_RDZV_CONF", "").split(",") if "=" in pair)
    settings = {"is_host": str(environ.get("PET_NODE_RANK") == "0").lower()} | {name: str(s) for name, s in WAIT_S.items()} | said
    return ["--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in settings.items())]


def environment(options: Sequence[str]) -> dict[str, str]:
    """What torchrun and its ranks find in their environment besides; nothing for a node that is not elastic."""
    if not is_elastic(options):
        return {}
    # torchrun would give every new world the store of the last one, where ranks read addresses of peers that are gone:
    # https://github.com/pytorch/pytorch/issues/135712
    return {VARIABLE: "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def in_elastic_world() -> bool:
    """Whether this rank's peers go on without it."""
    return os.environ.get(VARIABLE) == "1"


def last_incident(words: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The words of what happened last, the earliest first: those before were of worlds that others followed.

    Args:
        words: what ranks left, the earliest first, with `time` in seconds.
    """
    return [word for word in words if word["time"] > words[-1]["time"] - _INCIDENT_S]
