"""The log of a pod, line by line, each line once, whatever happens to the connection, the container or the pod. Pure of Kubernetes.

The API resumes a log only at a whole second, so the lines of that second come again. Each has a time stamp of nanoseconds: on
resuming, lines up to the last one that was said are passed over, by their stamp and, where several share it, by their number.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from components.watching import PAUSE_S, Interrupted, rest

KEPT_LINES = 2000
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class Waiting(Exception):
    """The container has no log yet."""


class Gone(Exception):
    """The pod is there no longer."""


class LogSource(Protocol):
    """Logs of one container."""

    def lines(self, since: str | None, previous: bool, follow: bool) -> Iterator[str]:
        """Whole lines, each with its time stamp before it, from a whole second on; of the container before, if `previous`.

        Raises:
            Interrupted: if it was cut short; an incomplete line is not yielded.
            Waiting: if it has not started.
            Gone: if the pod is there no longer.
        """


@dataclass
class Position:
    """Where the reading of a log has come to."""

    stamp: str = ""
    same: int = 0
    """Lines said with just this stamp."""

    @property
    def since(self) -> str | None:
        """The second to resume from, as RFC 3339."""
        return datetime.fromtimestamp(_key(self.stamp)[0], UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if self.stamp else None

    def new(self, stamped: Iterable[str]) -> Iterator[str]:
        """Of lines from `since` on those that were not said before, without their stamps."""
        last, passing, seen = self.stamp, bool(self.stamp), 0
        for line in stamped:
            stamp, _, text = line.partition(" ")
            if not _STAMP.fullmatch(stamp):  # the container runtime itself says something
                yield line
                continue
            if passing:
                if _key(stamp) < _key(last):
                    continue
                if _key(stamp) == _key(last) and seen < self.same:
                    seen += 1
                    continue
                passing = False
            self.same = self.same + 1 if stamp == self.stamp else 1
            self.stamp = stamp
            yield text


def _key(stamp: str) -> tuple[int, str]:
    """Orders time stamps to the nanosecond; a float would lose the last digits."""
    parts = _STAMP.fullmatch(stamp)
    assert parts
    return int(datetime.fromisoformat(parts[1] + parts[3]).timestamp()), (parts[2] or "").ljust(9, "0")


@dataclass
class Reader:
    """Reads the log of one container to its end, in a thread of its own or not.

    `state` tells how often the container was started anew and whether it has ended; `say` gets every line.
    """

    source: LogSource
    state: Callable[[], tuple[int, bool]]
    say: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)
    kept: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    """The last lines: the pod may be gone when they are asked for."""

    def run(self) -> None:
        """Return when the container has ended and all was said, when the pod is gone, or soon after `stop` is set."""
        position, restarts, pause_s = Position(), self.state()[0], PAUSE_S
        while not self.stop.is_set():
            now, ended = self.state()
            said = position.stamp, position.same
            try:
                if now > restarts:
                    if now > restarts + 1:
                        self._say(f"(the logs of {now - restarts - 1} containers between are gone)")
                    # what the one before said since we were cut off
                    self._read(position, previous=True, follow=False)
                    position, restarts = Position(), now
                self._read(position, previous=False, follow=not ended)
                if ended:
                    return
                pause_s = rest(self.stop, PAUSE_S, None)  # at its end, or the kubelet was restarted: the state will tell
            except Gone:
                return
            except Waiting:
                if ended:
                    return
                pause_s = rest(self.stop, PAUSE_S, None)
            except Interrupted as reason:
                came_on = (position.stamp, position.same) != said
                pause_s = rest(self.stop, PAUSE_S if came_on else pause_s, reason.after_s)

    def _read(self, position: Position, previous: bool, follow: bool) -> None:
        for text in position.new(self.source.lines(position.since, previous, follow)):
            self._say(text)
            if self.stop.is_set():
                return

    def _say(self, text: str) -> None:
        self.kept.append(text)
        self.say(text)


def chosen_nodes(ranks: str, nodes: int, processes: int) -> list[int]:
    """Which nodes' logs are followed: "all", or rank numbers such as "0,8-15"; node 0 always is.

    Raises:
        ValueError: if it is neither.
    """
    if ranks.strip() == "all":
        return list(range(nodes))
    found = {0}
    for part in filter(None, (part.strip() for part in ranks.split(","))):
        first, _, last = part.partition("-")
        found |= {rank // processes for rank in range(int(first), int(last or first) + 1)}
    return sorted(node for node in found if node < nodes)
