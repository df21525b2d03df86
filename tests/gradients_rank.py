"""One rank of the exactness tests of gradient balancing: trains every case of a list and leaves the parameters of the first rank.

Started by torchrun as `python gradients_rank.py CASES.json OUT`; the model and its data are made here for the test as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import trainer
from trainer import catalog
from trainer.balance import Gramian
from trainer.engine import open_engine
from trainer.joint import Joint
from trainer.order import share
from trainer.points import Place
from trainer.spec import Task, Train
from trainer.step import joint_step
from trainer.world import World, open_world

STEPS, ROWS, TASKS, LR = 10, 24, 4, 0.05
SPEC = {f"t{t}": Task(data="d", model="m", input="x", target=f"y{t}", objective="mse") for t in range(TASKS)}


class Trunk(nn.Module):
    """Two shared layers; what comes after the last one is part of the trunk too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 33), nn.Linear(33, 15)
        self.out_features = 15

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.tanh(self.first(x))))


class Encoders(nn.Module):
    """Two encoders with a balance point each, and behind them a layer that ZeRO-3 frees between its uses."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.fuse = nn.Linear(3, 160), nn.Linear(4, 160), nn.Linear(320, 330)
        self.out, self.out_features = nn.Linear(330, 15), 15

    def encode(self, x: Tensor) -> list[Tensor]:
        return [torch.tanh(self.left(x[:, :3])), torch.tanh(self.right(x[:, 3:]))]

    def join(self, encoded: list[Tensor]) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.fuse(torch.cat(encoded, 1)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.join([trainer.balance_point(z) for z in self.encode(x)])


def fresh(trunk: str = "one") -> Joint:
    """The model, the same every time."""
    torch.manual_seed(0)
    return Joint(SPEC, {"m": Trunk() if trunk == "one" else Encoders()}, {name: nn.Linear(15, 1) for name in SPEC})


def rows() -> tuple[Tensor, Tensor]:
    """Inputs and targets of every step: tasks of unequal scale, two of them at odds."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, ROWS, 7, generator=generator)
    y = torch.randn(STEPS, ROWS, TASKS, generator=generator) * torch.tensor([1.0, 3.0, 0.3, 1.0])
    y[:, :, 3] = 0.3 * y[:, :, 3] - y[:, :, 0]
    return x, y


def train(world: World, case: dict[str, Any]) -> dict[str, Tensor]:
    """Parameters after all steps of a case."""
    module = fresh(case.get("trunk", "one"))
    balancer = catalog.parser("balancer")(case["balancer"])
    optimizer = catalog.parser("optimizer")({"kind": "sgd", "lr": LR, "momentum": 0.5})
    train = Train(batch=ROWS, zero=case["stage"], accumulate=case["accumulate"], clip=None, precision=case.get("precision", "fp32"))
    engine = open_engine(module, optimizer, train, world.size, world.device)
    place = Place(module.models["m"], case["source"], "last" if case["source"] != "representation" and "trunk" not in case else None)
    gram = Gramian(case["source"], places={"m": place}, every=case.get("every", 1), probe_every=case.get("probe_every"))
    state, (x, y) = balancer.init(list(SPEC)), rows()
    for step in range(STEPS):
        batches = []
        for micro in range(case["accumulate"]):
            mine = share(ROWS, case["accumulate"] * world.size, micro * world.size + world.rank)
            batches.append({"d": ({"x": x[step][mine]}, {f"y{t}": y[step][mine][:, t] for t in range(TASKS)})})
        _, state = joint_step(engine, world, SPEC, list(range(TASKS)), batches, balancer, state, LR, (False, False), gram, step)
    params, _, _ = engine.export(optimizer=False)
    engine.close()
    return params


def main() -> None:
    """Train the cases of a file, in order."""
    torch.set_num_threads(1)
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    world = open_world(0)
    for number, case in enumerate(cases):
        params = train(world, case)
        if world.first:
            save_file({name: p.contiguous() for name, p in params.items()}, out / f"{number}.safetensors")
    world.close()


if __name__ == "__main__":
    main()
