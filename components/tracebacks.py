"""The traceback of a failure, found in the log of a pod that ran several ranks under torchrun. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_RANK = re.compile(r"^\[(?:default|rank)(\d+)\]:\s?")
_START = "Traceback (most recent call last):"
_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
_LAUNCHER = ("ChildFailedError", "SignalException", "torch/distributed/run.py", "torch/distributed/launcher")
_ECHO = re.compile(
    r"connection (reset|closed|refused)|broken pipe|remote process exited|peer|DistBackendError|DistNetworkError|NCCL|gloo|"
    r"watchdog|store.*timeout|recvBytes|sendBytes",
    re.IGNORECASE,
)
"""What ranks say when another one is gone."""


@dataclass(frozen=True)
class Found:
    """A traceback and its last line; `rank` if the log says whose it is."""

    text: str
    error: str
    rank: int | None

    @property
    def echo(self) -> bool:
        """Whether it only tells that some other rank is gone."""
        return is_echo(self.error)


def is_echo(error: str) -> bool:
    """Whether an error is what the loss of another rank looks like from here."""
    return bool(_ECHO.search(error))


def first_traceback(log: str) -> Found | None:
    """The one that says what went wrong: not the launcher's, and not of a rank that only lost another."""
    found = [t for t in _tracebacks(log.splitlines()) if not any(mark in t.text for mark in _LAUNCHER)]
    return next((t for t in found if not t.echo), found[0] if found else None)


def last_lines(log: str, count: int = 20) -> str:
    """The end of a log."""
    return "\n".join(log.rstrip().splitlines()[-count:])


def _tracebacks(lines: list[str]) -> Iterator[Found]:
    """Every traceback, chained ones as one. Lines of ranks may be mixed: each rank's are put together first."""
    by_rank: dict[int | None, list[str]] = {}
    for line in lines:
        prefix = _RANK.match(line)
        by_rank.setdefault(int(prefix[1]) if prefix else None, []).append(line[prefix.end() :] if prefix else line)
    for rank, said in by_rank.items():
        at = 0
        while at < len(said):
            if not said[at].startswith(_START):
                at += 1
                continue
            end = _end(said, at)
            text = "\n".join(said[at:end])
            yield Found(text, said[end - 1].strip(), rank)
            at = end


def _end(lines: list[str], start: int) -> int:
    """The line after a traceback that starts there."""
    at = start + 1
    while at < len(lines) and lines[at][:1] in (" ", "\t"):
        at += 1
    at = min(at + 1, len(lines))  # the exception itself
    chained = at + 1
    if chained < len(lines) and lines[at] == "" and lines[chained].startswith(_CHAINS):
        following = next((n for n in range(chained, min(chained + 4, len(lines))) if lines[n].startswith(_START)), None)
        if following is not None:
            return _end(lines, following)
    return at
