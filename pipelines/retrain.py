"""Train again if data, document or code has changed, and only once however many ask for it.

Whoever wants to submit a run with a key puts a claim below the root first, by a write that only one can win:

    claims/<key>.json    {"key", "by", "at", "run"}: who submits it, since when, and the run once there is one

A claim whose run failed, was terminated or is gone, or whose owner died before there was one, is taken over.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.kfp_client import ENDED, Kfp
from pipelines.submit import Submission, Submitted, parameters, submit
from trainer.errors import LaunchError, UserError
from trainer.outcomes import data_digests, outcome, outcome_of, run_key
from trainer.spec import JointSpec
from trainer.stores import open_store

Json = dict[str, Any]
STALE_S = 120.0
"""How long a claim without a run is waited for. Submitting takes seconds."""
_POLL_S = 0.5


@dataclass(frozen=True)
class Found:
    """What there was to do."""

    key: str
    done: Json | None = None
    """The outcome of a run with this key: nothing has changed since."""
    run: str = ""
    submitted: Submitted | None = None
    """None where the run was there already."""


def retrain(spec: JointSpec, how: Submission, connect: Callable[[], Kfp], say: Callable[[str], None], stale_s: float = STALE_S) -> Found:
    """The run for what the document, its data and the code are now: finished, going on, or submitted here. Doesn't wait for it.

    The server is not asked where the store has the answer.
    """
    key = run_key(spec, data_digests(spec))
    done = outcome(how.root, key)
    if done:
        return Found(key, done=done)
    kfp = connect()
    claims = _Claims(how.root, key, stale_s)
    name = f"{spec.name}-{key}"
    while True:
        tag, held = claims.read()
        run = _claimed(kfp, held, how.root, key, say) if held else None
        if isinstance(run, dict):
            return Found(key, done=run)
        if run:
            return Found(key, run=run)
        if held and not held["run"]:
            if not claims.stale(tag, held):
                time.sleep(_POLL_S)
                continue
            lost = _active(kfp, how, name)
            if lost:  # its owner died between starting it and saying so
                claims.take(tag, lost)
                continue
        mine = claims.take(tag, "")
        if mine is None:
            continue  # somebody else was quicker
        try:
            made = submit(kfp, how, name, parameters(spec, how.root))
        except BaseException:
            claims.drop(mine)
            raise
        claims.take(mine, made.run)
        return Found(key, run=made.run, submitted=made)


def _claimed(kfp: Kfp, held: Json, root: str, key: str, say: Callable[[str], None]) -> str | Json | None:
    """The run of a claim if it goes on, its outcome if it has succeeded, None if it is dead."""
    if not held["run"]:
        return None
    try:
        state = str(kfp.run(held["run"]).state).upper()
    except LaunchError:
        raise
    except UserError as error:
        if "HTTP 404" not in str(error):
            raise
        say(f"run {held['run']}, which {held['by']} submitted for this key, is gone: submitting anew")
        return None
    if state not in ENDED:
        return str(held["run"])
    if state == "SUCCEEDED":
        # its image may hold other code than this machine, and so another key: it was submitted for this one
        found = outcome(root, key) or outcome_of(root, held["run"])
        if found:
            return found
    say(f"run {held['run']}, which {held['by']} submitted for this key, ended as {state}: submitting anew")
    return None


def _active(kfp: Kfp, how: Submission, name: str) -> str | None:
    runs = kfp.named(name, kfp.experiment(how.experiment))
    return next((str(run.run_id) for run in runs if str(run.state).upper() not in ENDED), None)


class _Claims:
    """The claim on a key."""

    def __init__(self, root: str, key: str, stale_s: float) -> None:
        self._store, self._key, self._stale_s = open_store(root), key, stale_s
        self._path = f"claims/{key}.json"
        self._seen: tuple[str | None, float] = (None, 0.0)

    def read(self) -> tuple[str | None, Json | None]:
        """The version of the claim, for `take`, and what it says."""
        tag = self._store.version(self._path)
        if tag is None:
            return None, None
        try:
            found = json.loads(self._store.read(self._path))
            return tag, {name: found[name] for name in ("by", "at", "run")}
        except FileNotFoundError:
            return None, None
        except (ValueError, LookupError, TypeError):
            return tag, {"by": "somebody", "at": 0.0, "run": ""}  # rubbish is nobody's claim

    def stale(self, tag: str | None, held: Json) -> bool:
        """Whether its owner has had time enough. Watched by this machine's clock, for those of others may be wrong."""
        if self._seen[0] != tag:
            self._seen = (tag, time.monotonic())
        return time.monotonic() - self._seen[1] > self._stale_s or time.time() - held["at"] > 10 * self._stale_s

    def take(self, tag: str | None, run: str) -> str | None:
        """Replace the version of the claim that was read: the new version, or None if it is another one by now."""
        by = f"{platform.node()}:{os.getpid()}"
        if not self._store.swap(self._path, json.dumps({"key": self._key, "by": by, "at": time.time(), "run": run}).encode(), tag):
            return None
        return self._store.version(self._path)

    def drop(self, tag: str) -> None:
        """Give up a claim of one's own."""
        if self._store.version(self._path) == tag:
            self._store.delete(self._path)
