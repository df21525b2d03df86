"""Step time and memory of balanced training against the plain sum of losses and TorchJD, side by side in one run.

    python -m benchmarks.balancers [--quick] [--tasks 2 4 8 16 32] [--rounds 9] [--save docs/results/balancing-cost.md]

A step is forward, backward and AdamW on one process and one thread. Rounds are interleaved: every contestant makes one step in
turn, in an order that changes, and the processor time of each is divided by that of the plain sum in the same round.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import arguments, machine, publish, spread, table
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
CLASSES = 10
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
    """A trunk and the width of its input: `mlp` and `transformer` have about 5 M parameters, `mlp:24` has 24 layers."""
    if kind.startswith("mlp"):
        layers = int(kind.partition(":")[2] or 6)
        return Mlp([0], [896] * (layers + 1), 0.0, nn.ReLU), 896
    return Transformer(), 16 * 256


def parts(kind: str, tasks: int, big: bool) -> tuple[nn.Module, dict[str, nn.Module], Tensor, dict[str, Tensor]]:
    """The same model and batch for every contestant."""
    torch.manual_seed(0)
    body, width = trunk(kind)
    d = body.out_features
    heads = {
        f"t{t}": nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, CLASSES)) if big else nn.Linear(d, CLASSES) for t in range(tasks)
    }
    return body, heads, torch.randn(BATCH, width), {name: torch.randint(0, CLASSES, (BATCH,)) for name in heads}


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
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)

    def step() -> None:
        z = body(x)
        loss = sum(nn.functional.cross_entropy(head(z), y[name]) for name, head in heads.items())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchjd(kind: str, tasks: int, big: bool, how: str) -> Callable[[], None]:
    """TorchJD with UPGrad: by Jacobians, batched over the tasks (its default) or task by task, or by its Gramian engine."""
    from torchjd.aggregation import UPGrad, UPGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import jac_to_grad, mtl_backward

    body, heads, x, y = parts(kind, tasks, big)
    params = [*body.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    engine, weighting, aggregator = Engine(body, batch_dim=None), UPGradWeighting(), UPGrad()

    def step() -> None:
        z = body(x)
        losses = [nn.functional.cross_entropy(head(z), y[name]) for name, head in heads.items()]
        if how == "autogram":
            stacked = torch.stack(losses)
            stacked.backward(weighting(engine.compute_gramian(stacked)))
        else:
            mtl_backward(losses, z, parallel_chunk_size=1 if "one by one" in how else None)
            jac_to_grad(body.parameters(), aggregator)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ratios(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant over those of the first, round by round. TorchJD, many times slower, takes part in the first 3 rounds."""
    names = list(contestants)
    for step in contestants.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in names}
    shuffler = random.Random(0)
    for turn in range(rounds):
        took = {}
        for name in shuffler.sample(names, len(names)):
            if turn >= 3 and name.startswith("TorchJD"):
                continue
            started = time.process_time()
            contestants[name]()
            took[name] = time.process_time() - started
        for name in took:
            found[name].append(took[name] / took[names[0]])
    return found


def peak_mib(step: Callable[[], None]) -> float:
    """The most memory that tensors made in a step take at a time, MiB. Parameters and the optimiser's state are made before."""
    from torch.profiler import ProfilerActivity, profile

    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    with tempfile.TemporaryDirectory(prefix="cotrain-peak-") as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]") / 2**20


def contenders(kind: str, tasks: int, big: bool, methods: list[str], most: int) -> dict[str, Callable[[], None]]:
    """Everything that is compared, the plain sum of losses first."""
    found = {"plain sum": plain(kind, tasks, big), "cotrain equal": ours(kind, tasks, big, "equal", "")}
    for source in SOURCES:
        for method in methods:
            found[f"cotrain {method}, {source}"] = ours(kind, tasks, big, method, source)
    if tasks <= most:
        for how in ("mtl_backward", "mtl_backward one by one", "autogram"):
            found[f"TorchJD upgrad, {how}"] = torchjd(kind, tasks, big, how)
    return found


def times(kind: str, big: bool, tasks: list[int], methods: list[str], rounds: int, most: int) -> str:
    """Step times over the plain sum: a row a contestant, a column a number of tasks."""
    columns: dict[int, dict[str, list[float]]] = {}
    for count in tasks:
        columns[count] = ratios(contenders(kind, count, big, methods, most), rounds)
        gc.collect()
        print(f"{kind}, {'large' if big else 'small'} heads, T = {count}: done", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(name for found in columns.values() for name in found))[1:]
    lines = [[name, *(spread(columns[t][name]) if name in columns[t] else "not tried" for t in tasks)] for name in names]
    parameters = sum(p.numel() for p in trunk(kind)[0].parameters()) / 1e6
    heads = "two-layer heads" if big else "linear heads"
    return f"### {'MLP' if kind == 'mlp' else 'Transformer'} trunk of {parameters:.2f} M parameters, {heads}\n\n" + table(
        ["step time over the plain sum", *(f"T = {t}" for t in tasks)], lines
    )


def memory(tasks: int, layers: list[int], most: int) -> str:
    """Peak memory over that of the plain sum, for trunks of more and more parameters."""
    kinds = [f"mlp:{n}" for n in layers]
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        for name, step in contenders(kind, tasks, False, ["upgrad"], most).items():
            if name == "plain sum":
                base = peak_mib(step)
            else:
                rows.setdefault(name, []).append(f"{peak_mib(step) - base:+.1f}")
        gc.collect()
    sizes = [sum(p.numel() for p in trunk(kind)[0].parameters()) / 1e6 for kind in kinds]
    head = [f"memory over the plain sum, MiB, T = {tasks}", *(f"{size:.1f} M parameters" for size in sizes)]
    return "### Memory: MLP trunks of one width and more and more layers, linear heads\n\n" + table(
        head, [[name, *cells] for name, cells in rows.items()]
    )


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=9, help="of the transformer; the MLP, ten times faster, has three times as many")
    parser.add_argument("--trunks", nargs="+", choices=["mlp", "transformer"], default=["mlp", "transformer"])
    parser.add_argument("--torchjd", type=int, default=32, metavar="T", help="TorchJD up to so many tasks: each costs it a backward pass")
    chosen = parser.parse_args()
    before = machine()
    torch.set_num_threads(1)
    methods, tasks, rounds = (METHODS[:1], [2], 2) if chosen.quick else (METHODS, chosen.tasks, chosen.rounds)
    parts = [f"Batch {BATCH}; median (lowest to highest) of {rounds} rounds of the transformer, {3 * rounds} of the MLP, 3 of TorchJD."]
    for kind in chosen.trunks:
        turns = 3 * rounds if kind == "mlp" else rounds
        parts += [times(kind, big, tasks, methods[:1] if big else methods, turns, chosen.torchjd) for big in (False, True)]
    parts.append(memory(2 if chosen.quick else 8, [2, 6] if chosen.quick else [2, 6, 24], chosen.torchjd))
    publish("balancers", before, "\n\n".join(parts), chosen.save)


if __name__ == "__main__":
    main()
