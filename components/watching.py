"""Every change of a set of objects, exactly once and for as long as it takes: list, then watch from where the list ended.

A watch ends all the time: by its own time limit, an API server that restarts, a connection that is cut or silently dead.
It goes on from the last resource version that was seen; where the server has forgotten that (410), everything is listed anew
and what changed or went meanwhile is told as if it had been seen.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from trainer.observe import emit

Json = dict[str, Any]
LISTED = "LISTED"
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Interrupted(Exception):
    """The server could not be reached, or had no time; `after_s` is how long it asks to be left alone."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class Expired(Exception):
    """The server no longer knows the resource version that a watch was to start from."""


class Source(Protocol):
    """A set of objects on a server."""

    def list(self) -> tuple[list[Json], str]:
        """All of them, and the resource version of the list."""

    def watch(self, version: str) -> Iterator[Json]:
        """Watch events since a resource version, BOOKMARK among them, until the server or the network ends it.

        Raises:
            Interrupted: if it was cut short.
            Expired: if the server does not know that version any more.
        """


def changes(source: Source, stop: threading.Event, known: dict[str, Json] | None = None) -> Iterator[Json]:
    """Watch events ADDED, MODIFIED and DELETED until `stop` is set. An object that was told is not told again unchanged.

    After what a list has told comes an event LISTED: all that was there is known. `known` are objects, by uid, that were there before:
    what has become of them is told.
    """
    known = {} if known is None else known
    pause_s, failed = PAUSE_S, 0
    while not stop.is_set():
        try:
            items, version = source.list()
        except Interrupted as reason:
            failed = _say(failed, reason)
            pause_s = rest(stop, pause_s, reason.after_s)
            continue
        yield from _difference(known, items)
        yield {"type": LISTED, "object": {}}
        while not stop.is_set():
            try:
                for event in source.watch(version):
                    pause_s, failed = PAUSE_S, 0
                    thing = event["object"]
                    version = thing["metadata"]["resourceVersion"]
                    if event["type"] == "BOOKMARK":
                        continue
                    uid = thing["metadata"]["uid"]
                    if event["type"] == "DELETED":
                        known.pop(uid, None)
                    else:
                        known[uid] = thing
                    yield event
                    if stop.is_set():
                        return
            except Expired:
                break
            except Interrupted as reason:
                failed = _say(failed, reason)
                pause_s = rest(stop, pause_s, reason.after_s)


def _difference(known: dict[str, Json], items: list[Json]) -> Iterator[Json]:
    """What a new list says that was not known, as events; `known` is brought up to date."""
    there = {item["metadata"]["uid"]: item for item in items}
    for uid in [uid for uid in known if uid not in there]:
        yield {"type": "DELETED", "object": known.pop(uid)}
    for uid, item in there.items():
        before = known.get(uid)
        if before is None or _version(before) != _version(item):
            known[uid] = item
            yield {"type": "MODIFIED" if before else "ADDED", "object": item}


def _version(item: Mapping[str, Any]) -> str:
    return item["metadata"]["resourceVersion"]


def _say(failed: int, reason: Interrupted) -> int:
    """One more failure in a row, of which not each is said: that a watch is cut is nothing."""
    failed += 1
    if failed == 3 or failed % 20 == 0:
        emit("cluster_unreachable", why=str(reason), tried=failed)
    return failed


def rest(stop: threading.Event, pause_s: float, after_s: float | None) -> float:
    """Wait, longer each time and never in step with others; returns the next pause."""
    stop.wait(after_s if after_s is not None else random.uniform(pause_s / 2, pause_s))
    return min(LONGEST_PAUSE_S, pause_s * 2)
