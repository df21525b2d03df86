"""Every error that cotrain raises on purpose, and what each means to the one who sees it.

CotrainError              ours: exit code 1, with a traceback
├── NotAgain              of a node that was started once more than the document allows: exit code 3
└── UserError             the user's: exit code 2, place + finding + remedy, no traceback
    ├── SpecError         the document
    ├── DataError         the rows behind it
    ├── StoreError        where bytes live
    └── LaunchError       what this machine or cluster lacks
GateFailed                the models were trained, and judged not good enough: exit code 3
Stopped                   asked to stop, state saved, can go on: exit code 130
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what was found (with its value), and one thing to do about it."""

    place: str
    finding: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.finding}\n    fix: {self.remedy}"


class CotrainError(Exception):
    """Something went wrong on our side."""

    exit_code = 1


class NotAgain(CotrainError):
    """A node is not to be started again; what went wrong was said by those before it."""

    exit_code = 3


class UserError(CotrainError):
    """Something the user can put right. Carries every fault that was found, not only the first."""

    exit_code = 2

    def __init__(self, faults: Fault | Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))

    @classmethod
    def at(cls, place: str, finding: str, remedy: str) -> UserError:
        """The error of a single fault."""
        return cls(Fault(place, finding, remedy))


class SpecError(UserError):
    """The document can't be trained as written."""


class DataError(UserError):
    """The rows are not what the document says they are."""


class StoreError(UserError):
    """A store can't be reached, read or written."""


class LaunchError(UserError):
    """This machine or cluster can't run what the document asks for."""


class GateFailed(CotrainError):
    """A gate of the document said no: nothing was published."""

    exit_code = 3


class Stopped(CotrainError):
    """A stop was asked for; what was done so far is kept."""

    exit_code = 130


def one_of(name: object, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest one, then all of them."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    listing = ", ".join(names) if names else "(none)"
    return f"did you mean '{near[0]}'? known: {listing}" if near else f"known: {listing}"
