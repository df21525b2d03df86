"""One rank of a process group that trains one request after another: starting processes takes longer than these trainings do."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import trainer.run
from trainer import engine
from trainer.errors import Stopped
from trainer.requests import read_request
from trainer.run import Run
from trainer.step import joint_step
from trainer.world import World, open_world


def train_job(job: dict[str, Any], world: World) -> dict[str, Any]:
    """Train the request `key` below `root`.

    Where `stop` is `[phase, step]`, one rank is asked to stop during that step; all hear of it in the next. `without` names
    a method of the sharded engine that does nothing then, to see that tests would notice.

    Returns:
        `rows`: for each step, `[phase, step, {dataset: rows that this rank trained on}]`, a row being the first number of its
        first input column; `stopped`: what was said when it was, or null.
    """
    run = Run(read_request(job["root"], job["key"]), job["root"], world, time.time())
    rows: list[tuple[str, int, dict[str, list[float]]]] = []
    phase = run._phase

    def watched_phase(number: int, plan: Any, module: Any) -> None:
        start = run.saved.step

        def watched_step(*args: Any, **named: Any) -> Any:
            nonlocal start
            seen: dict[str, list[float]] = {}
            for batches in named.get("micro_batches") or args[4]:
                for name, (inputs, _) in batches.items():
                    first = next(iter(inputs.values())).flatten(1)[:, 0]
                    seen.setdefault(name, []).extend(first.tolist())
            rows.append((plan.name, start, seen))
            if job.get("stop") == [plan.name, start] and world.rank == world.size - 1:
                world.stop_asked = True
            start += 1
            return joint_step(*args, **named)

        with mock.patch.object(trainer.run, "joint_step", watched_step):
            phase(number, plan, module)

    stopped = None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(run, "_phase", watched_phase))
            if job.get("without"):
                stack.enter_context(mock.patch.object(engine._DeepSpeedEngine, job["without"]))
            run.run()
    except Stopped as error:
        stopped = str(error)
    finally:
        world.stop_asked = False
    return {"rows": rows, "stopped": stopped}


def main() -> None:
    faulthandler.register(signal.SIGUSR1)  # where it hangs, if it does
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = open_world(0)
    found = []
    for job in json.loads((folder / "jobs.json").read_text()):
        started = time.time()
        found.append(train_job(job, world))
        print(job.get("label"), round(time.time() - started, 2), flush=True)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.barrier()
    world.close()


if __name__ == "__main__":
    main()
