"""Step time of balanced training against the plain sum of losses and TorchJD, side by side in one run.

    python benchmarks/balancers.py [--quick] [--tasks 2 4 8 16 32] [--rounds 7]

A step is forward, backward and AdamW on one process and one thread. Rounds are interleaved: every contestant makes one step
in turn, in an order that changes, and each is divided by the plain sum of the same round. Batch 64; T heads onto 10 classes.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from trainer import catalog
from trainer.balance import Gramian
from trainer.engine import open_engine
from trainer.joint import Joint
from trainer.nets import Mlp
from trainer.points import Place
from trainer.spec import Task, Train
from trainer.step import joint_step
from trainer.world import World

BATCH = 64
METHODS = ["upgrad", "pcgrad", "mgda", "cagrad", "aligned_mtl", "imtl_g", "nash_mtl", "fairgrad"]
SOURCES = ["representation", "last_layer"]


class Transformer(nn.Module):
    """6 pre-norm layers of width 256 over 16 tokens, mean-pooled: 4.74 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.out_features = 256

    def forward(self, x: Tensor) -> Tensor:
        """Representation `[B, 256]` of `[B, 16 * 256]`."""
        return self.layers(x.view(len(x), 16, 256)).mean(1)


def trunk(kind: str) -> tuple[nn.Module, int]:
    """A trunk of about 5 M parameters and the width of its input."""
    if kind == "mlp":
        return Mlp([0], [896] * 7, 0.0, nn.ReLU), 896
    return Transformer(), 16 * 256


def parts(kind: str, tasks: int, big: bool) -> tuple[nn.Module, dict[str, nn.Module], Tensor, dict[str, Tensor]]:
    """The same model and batch for every contestant."""
    torch.manual_seed(0)
    body, width = trunk(kind)
    d = body.out_features
    heads = {f"t{t}": nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, 10)) if big else nn.Linear(d, 10) for t in range(tasks)}
    return body, heads, torch.randn(BATCH, width), {name: torch.randint(0, 10, (BATCH,)) for name in heads}


def ours(kind: str, tasks: int, big: bool, method: str, source: str) -> Callable[[], None]:
    """One step of cotrain's own loop."""
    body, heads, x, y = parts(kind, tasks, big)
    spec = {name: Task(data="d", model="m", input="x", target=name, objective="cross_entropy") for name in heads}
    module = Joint(spec, {"m": body}, heads)
    world = World(0, 1, 0, torch.device("cpu"))
    engine = open_engine(module, catalog.parser("optimizer")("adamw"), Train(batch=BATCH, clip=None), 1, world.device)
    balancer = catalog.parser("balancer")(method)
    gram = None
    if balancer.needs_gram:
        gram = Gramian(source, places={"m": Place(body, source)})
    state = balancer.init(list(spec))
    batch = [{"d": ({"x": x}, y)}]
    present = list(range(tasks))

    def step() -> None:
        nonlocal state
        _, state = joint_step(engine, world, spec, present, batch, balancer, state, 1e-3, (False, False), gram)

    return step


def plain(kind: str, tasks: int, big: bool) -> Callable[[], None]:
    """The sum of the losses, by hand."""
    body, heads, x, y = parts(kind, tasks, big)
    params = [*body.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimizer = torch.optim.AdamW(params, lr=1e-3)

    def step() -> None:
        z = body(x)
        loss = sum(nn.functional.cross_entropy(head(z), y[name]) for name, head in heads.items())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchjd(kind: str, tasks: int, big: bool, how: str) -> Callable[[], None]:
    """TorchJD with UPGrad: by Jacobians of the features, or by its Gramian engine."""
    from torchjd.aggregation import UPGrad, UPGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import jac_to_grad, mtl_backward

    body, heads, x, y = parts(kind, tasks, big)
    params = [*body.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    engine, weighting, aggregator = Engine(body, batch_dim=None), UPGradWeighting(), UPGrad()

    def step() -> None:
        z = body(x)
        losses = [nn.functional.cross_entropy(head(z), y[name]) for name, head in heads.items()]
        if how == "autogram":
            stacked = torch.stack(losses)
            stacked.backward(weighting(engine.compute_gramian(stacked)))
        else:
            mtl_backward(losses, z)
            jac_to_grad(body.parameters(), aggregator)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ratios(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant over those of the first, round by round."""
    names = list(contestants)
    for step in contestants.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in names}
    shuffler = random.Random(0)
    for _ in range(rounds):
        took = {}
        for name in shuffler.sample(names, len(names)):
            started = time.process_time()
            contestants[name]()
            took[name] = time.process_time() - started
        for name in names:
            found[name].append(took[name] / took[names[0]])
    return found


def peak_mib(kind: str, tasks: int, what: str) -> float:
    """Peak resident memory of three steps in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, str(tasks), what]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="T=2 and 4, two methods, three rounds")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.peak:
        kind, tasks, what = chosen.peak
        jd = {name: partial(torchjd, how=name) for name in ("mtl_backward", "autogram")}
        make = {"plain": plain, **jd}.get(what, partial(ours, method="upgrad", source=what))
        step = make(kind, int(tasks), False)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    methods, tasks, rounds = (METHODS[:2], [2, 4], 3) if chosen.quick else (METHODS, chosen.tasks, chosen.rounds)
    for kind in ("mlp", "transformer"):
        for big in (False, True):
            print(f"\n{kind} trunk, {'two-layer' if big else 'linear'} heads:")
            print(f"step time over the plain sum of losses, median (min to max) of {rounds} rounds")
            for count in tasks:
                contestants = {"plain sum": plain(kind, count, big), "cotrain equal": ours(kind, count, big, "equal", "")}
                for source in SOURCES:
                    for method in methods if not big else methods[:1]:
                        contestants[f"cotrain {method} {source}"] = ours(kind, count, big, method, source)
                for how in ("mtl_backward", "autogram"):
                    contestants[f"torchjd upgrad {how}"] = torchjd(kind, count, big, how)
                for name, values in ratios(contestants, rounds).items():
                    print(
                        f"  T={count:<3} {name:<34} {statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})", flush=True
                    )
    print("\npeak resident memory over the plain sum of losses, MiB, mlp trunk, UPGrad")
    for count in tasks:
        base = peak_mib("mlp", count, "plain")
        extra = {what: peak_mib("mlp", count, what) - base for what in (*SOURCES, "mtl_backward", "autogram")}
        print(f"  T={count:<3} " + "  ".join(f"{what} {value:+.0f}" for what, value in extra.items()), flush=True)


if __name__ == "__main__":
    main()
