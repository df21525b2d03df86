"""What surrounds every step: its events, how it is stopped, and a word for the one who started it when it fails."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from components.store_access import credentials_from
from trainer.errors import CotrainError, Stopped, UserError
from trainer.lifeline import follow
from trainer.observe import leave_word, timed
from trainer.stores import open_store
from trainer.stores.s3_faults import CREDENTIALS_FROM

LOG = "COTRAIN_LOG"
"""Names the file that a step and what it starts write to, instead of the standard output of whoever started it."""
RUN = "COTRAIN_RUN_ID"
"""The id of the pipeline run that a step belongs to. Set on a cluster, where steps share no disk."""
_SHOWN_CHARACTERS = 20_000
FINAL_S = 900.0
"""How long a failure that was final keeps the same step of the same run from being done again: longer than a pipeline server takes
to try it as often as it was told to, and not much longer, for whoever retries a run by hand may have put something right."""


@contextmanager
def step(name: str, root: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit events around a step; the body may add fields to the last one (`reused`).

    SIGTERM, or the end of the command, ends the step by an exception, so that it cleans up. What goes wrong in a run on a
    cluster is left below `root` for its last step to tell. A pipeline server tries again whatever failed; what has failed for
    good ends at once then, with the same words.
    """
    _write_to(os.environ.get(LOG))
    if run_id():
        os.environ.setdefault(CREDENTIALS_FROM, credentials_from(os.environ.get("COTRAIN_NAMESPACE", "NAMESPACE")))
    signal.signal(signal.SIGTERM, _stop)
    follow()
    try:
        with timed(name, **fields) as found:
            _not_again(root, name, fields)
            yield found
    except Exception as error:
        leave_word(name, error)
        if not isinstance(error, _Again):
            _leave_cause(root, name, fields, error)
        raise


def run_id() -> str:
    """The id of the pipeline run that this process is a step of; empty on one machine."""
    return os.environ.get(RUN, "")


def causes_page(root: str, state: str) -> str:
    """What came of the run that this process is a step of, as Markdown: the verdict on each task, or why it failed, first things first."""
    _write_to(os.environ.get(LOG))
    follow()
    if not run_id():
        return "Nothing is kept of single steps on one machine: the log of the command has it all.\n" if state != "SUCCEEDED" else _WELL
    from trainer.outcomes import causes, outcome_of

    found = causes(root, run_id())
    if state == "SUCCEEDED":
        outcome = outcome_of(root, run_id())
        parts = _verdict(root, outcome) if outcome else [_WELL]
        if found:
            parts += ["## Survived\n", *(f"### {cause['step']}\n\n{cause['said']}\n" for cause in found)]
        return "\n".join(parts)
    if not found:
        return "No step said why. Look at the pods of the step that failed: it may never have started, or was killed.\n"
    return "\n".join(f"## {cause['step']}\n\n{cause['said']}\n" for cause in found)


_WELL = "Nothing failed.\n"


def _verdict(root: str, outcome: dict[str, Any]) -> list[str]:
    from trainer.flow import verdict

    said = "\n".join(f"- {line}" for line in verdict(root, outcome))
    refused = "\n".join(f"- {reason}" for reason in outcome["reasons"])
    return [
        f"# {'Published' if outcome['published'] else 'Trained and judged'}: {outcome['name']}\n",
        f"{said}\n",
        *([f"## Nothing was published: a gate said no\n\n{refused}\n"] if not outcome["published"] else []),
    ]


class _Again(CotrainError):
    """Was tried before in this run, and failed for good."""


def _not_again(root: str, name: str, fields: dict[str, Any]) -> None:
    import time

    from trainer.outcomes import causes

    for cause in causes(root, run_id()) if run_id() else ():
        if cause.get("final") and (cause["name"], cause["fields"]) == (name, fields) and time.time() - cause["time"] < FINAL_S:
            raise _Again(f"{cause['text']}\n(failed for good in this run, and is not tried again; a new run tries it)")


def _leave_cause(root: str, name: str, fields: dict[str, Any], error: Exception) -> None:
    if not run_id():
        return
    import time
    import traceback

    text = str(error) if isinstance(error, CotrainError) else "".join(traceback.format_exception(error))
    text = text[-_SHOWN_CHARACTERS:]
    fenced = "```text\n" + text.replace("```", "'''") + "\n```"
    about = " ".join(str(fields[field]) for field in ("dataset", "role", "task") if fields.get(field))
    step = f"{name} {about}".strip()
    cause = {
        "time": time.time(),
        "step": step,
        "name": name,
        "fields": fields,
        "said": getattr(error, "markdown", None) or fenced,
        "text": text,
        "faults": [vars(fault) for fault in error.faults] if isinstance(error, UserError) else [],
        "final": getattr(error, "final", False),
    }
    with suppress(Exception):  # why the step failed matters more than that this could not be said
        key = f"causes/{run_id()}/{step.replace(' ', '-')}-{os.environ.get('COTRAIN_POD_NAME', os.getpid())}.json"
        open_store(root).write(key, json.dumps(cause).encode())


def _write_to(log: str | None) -> None:
    """Point standard output and error at a file: a pipe breaks when the one who reads it ends first."""
    if not log:
        return
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    os.close(target)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: cleaning up is not to be interrupted
    raise Stopped("asked to stop")
