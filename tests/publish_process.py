"""Publishes in processes that die, or that race.

    python tests/publish_process.py kill URI OLD NEW     publish OLD to URI/0, URI/1, ..., then NEW by a process that dies just
                                                         before its n-th write to URI/n (or in the middle of it), until one gets through
    python tests/publish_process.py race URI TRAIN...    a process for each result, all at the same moment

Prints one JSON line: exit codes of the processes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData  # noqa: F401  imported once here, not in every fork
from model_inputs import verdict

from trainer.publish import publish

WRITES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}


def in_process(work: Callable[[], object]) -> int:
    """The id of a fork of this process that does the work."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def die_at(n: int, uri: str) -> None:
    """Kill this process just before its n-th write below a store."""
    left, lock = [n], threading.Lock()

    def count(then: Callable[[], object] = lambda: None) -> None:
        with lock:
            left[0] -= 1
            if left[0] == -1:
                with suppress(OSError):
                    then()
                os.kill(os.getpid(), 9)

    if uri.startswith("s3://"):
        from trainer.stores.s3 import S3Store

        def before_send(request, **_) -> None:
            if request.method not in ("GET", "HEAD"):
                count()

        S3Store(uri)._client.meta.events.register("before-send.s3", before_send)
        return

    def audit(event: str, args: tuple) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if left[0] < 0 or not any(isinstance(arg, str | Path) and str(arg).startswith(uri) for arg in args[:2]):
            return
        if opened or event in WRITES:
            count()
        if opened:  # and once more when the file is there, or emptied, and not yet written
            count(lambda: os.open(args[0], args[2]))

    sys.addaudithook(audit)


def kill(uri: str, old: str, new: str) -> list[int]:
    """Exit codes: -9 as long as the n-th write is there to die at."""
    codes = []
    while not codes or codes[-1] == -9:
        store = f"{uri}/{len(codes)}"
        publish(Path(old), verdict(), store)

        def work(n: int = len(codes), store: str = store) -> None:
            die_at(n, store)
            publish(Path(new), verdict(), store)

        codes.append(os.waitstatus_to_exitcode(os.waitpid(in_process(work), 0)[1]))
    return codes


def race(uri: str, *trains: str) -> list[int]:
    """Exit codes of publishers that start together."""
    start = time.time() + 0.3

    def work(train: str) -> None:
        time.sleep(max(0, start - time.time()))
        publish(Path(train), verdict(), uri)

    children = [in_process(lambda train=train: work(train)) for train in trains]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps({"kill": kill, "race": race}[sys.argv[1]](*sys.argv[2:])))
