"""One rank of a process group, on a machine of its own, that trains one request after another and counts the bytes that its network card sends."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import trainer.run
from trainer.requests import read_request
from trainer.run import Run
from trainer.step import joint_step
from trainer.world import World, open_world


def sent() -> int:
    """Bytes that this machine has sent so far."""
    (line,) = [line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("eth0:")]
    return int(line.split(":")[1].split()[8])


def train_job(job: dict[str, Any], world: World) -> list[int]:
    """Bytes sent in each step of a training."""
    found = []

    def counted(*args: Any, **named: Any) -> Any:
        world.barrier()
        before = sent()
        done = joint_step(*args, **named)
        world.barrier()
        found.append(sent() - before)
        return done

    with mock.patch.object(trainer.run, "joint_step", counted):
        Run(read_request(job["root"], job["key"]), job["root"], world, time.time()).run()
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = open_world(0)
    found = [train_job(job, world) for job in json.loads((folder / "jobs.json").read_text())]
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.barrier()
    world.close()


if __name__ == "__main__":
    main()
