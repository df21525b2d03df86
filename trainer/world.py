"""The ranks of a training run: who I am, on which device, and what all ranks agree on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import LaunchError
from trainer.lifeline import follow


@dataclass
class World:
    """One rank's view of all ranks. Created by `open_world`, once a process."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    stop_asked: bool = field(default=False)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and events."""
        return self.rank == 0

    def sum(self, *vectors: Tensor) -> list[Tensor]:
        """Each float32 vector summed over ranks, in one collective."""
        if self.size == 1:
            return list(vectors)
        packed = torch.cat(vectors)
        dist.all_reduce(packed)
        return list(packed.split([len(v) for v in vectors]))

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite floating-point tensors with those of the first rank, in one collective."""
        if self.size == 1 or not tensors:
            return
        packed = torch.cat([t.detach().flatten().float() for t in tensors])
        dist.broadcast(packed, 0)
        with torch.no_grad():
            for t, values in zip(tensors, packed.split([t.numel() for t in tensors]), strict=True):
                t.copy_(values.view_as(t))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def open_world(gpus_per_node: int, peer_timeout_s: float = 600) -> World:
    """The world that torchrun's environment describes; one rank where there is none.

    SIGTERM and SIGINT end a rank at once as long as the ranks gather, for there is nothing to lose. Then they only
    set `stop_asked`: the loop agrees on a stop at a step boundary. The end of the command counts as SIGTERM.

    Args:
        gpus_per_node: GPUs to take; 0: train on CPUs.
        peer_timeout_s: how long ranks wait for one another.

    Raises:
        LaunchError: if GPUs are asked for that are not there.
    """
    follow()
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if gpus_per_node:
        found = torch.cuda.device_count()
        if found <= local_rank:
            raise LaunchError.at(
                "cluster.gpus_per_node", f"asks for {gpus_per_node} GPUs, this machine shows {found}", "set it to 0 to train on CPUs"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        device = torch.device("cpu")
    world = World(rank, size, local_rank, device)

    if size > 1:
        from trainer.engine import init_distributed

        init_distributed(device, peer_timeout_s)
        world.barrier()  # from here on all ranks answer to signals alike: one that ended alone would leave the others waiting

    def on_signal(number: int, frame: FrameType | None) -> None:
        world.stop_asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return world
