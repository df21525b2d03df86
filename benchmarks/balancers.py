"""Step time and memory of balanced training against the plain sum of losses and TorchJD, side by side in one run.

    python -m benchmarks.balancers [--quick] [--tasks 2 4 8 16 32] [--rounds 9] [--save docs/results/balancing-cost.md]
    python -m benchmarks.balancers --device cuda --trunks large --zero 1 3

A step is forward, backward and AdamW on one process and one thread. Rounds are interleaved: every contestant makes one step in
turn, in an order that changes, and the time of each is divided by that of the plain sum in the same round: processor time, and on a
GPU that of the wall between two synchronisations. With `--zero` all but TorchJD, which knows no ZeRO, train in bf16 through DeepSpeed.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import arguments, machine, publish, spread, table
from trainer import catalog
from trainer.balance import Gramian
from trainer.engine import group_of_one, open_engine
from trainer.joint import Joint
from trainer.nets import Mlp
from trainer.plan import deepspeed_config
from trainer.points import Place
from trainer.spec import Task, Train
from trainer.step import joint_step
from trainer.world import World

BATCH = 64
CLASSES = 10
METHODS = ["upgrad", "pcgrad", "mgda", "cagrad", "aligned_mtl", "imtl_g", "nash_mtl", "fairgrad"]
SOURCES = ["representation", "last_layer"]
FEWER = ["upgrad", "mgda", "nash_mtl"]
"""Methods tried on the large trunk: every contestant holds a trunk of its own, all at a time."""


@dataclass(frozen=True)
class Ground:
    """Where and how steps are made."""

    device: torch.device
    zero: int | None = None
    """Stage of ZeRO, in bf16 through DeepSpeed; None: float32 on plain torch."""

    @property
    def train(self) -> Train:
        """As a document asks for it."""
        if self.zero is None:
            return Train(batch=BATCH, clip=None)
        return Train(batch=BATCH, clip=None, zero=self.zero, precision="bf16")  # type: ignore[arg-type]

    def now_s(self) -> float:
        """A clock that what else the machine does leaves alone, as far as there is one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


HERE = Ground(torch.device("cpu"))


class Transformer(nn.Module):
    """Pre-norm layers over tokens, mean-pooled: by default 6 of width 256 over 16 tokens, 4.74 M parameters."""

    def __init__(self, width: int = 256, heads: int = 4, layers: int = 6, tokens: int = 16) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out_features, self.tokens = width, tokens

    def forward(self, x: Tensor) -> Tensor:
        """Representation `[B, width]` of `[B, tokens * width]`."""
        return self.layers(x.view(len(x), self.tokens, self.out_features)).mean(1)


def trunk(kind: str) -> tuple[nn.Module, int]:
    """A trunk and the width of its input: `mlp` and `transformer` have about 5 M parameters, `mlp:24` has 24 layers, `large` 302 M."""
    if kind.startswith("mlp"):
        layers = int(kind.partition(":")[2] or 6)
        return Mlp([0], [896] * (layers + 1), 0.0, nn.ReLU), 896
    if kind == "large":
        return Transformer(1024, 16, 24, 64), 64 * 1024
    return Transformer(), 16 * 256


def parts(kind: str, tasks: int, big: bool, ground: Ground) -> tuple[nn.Module, dict[str, nn.Module], Tensor, dict[str, Tensor]]:
    """The same model and batch for every contestant."""
    torch.manual_seed(0)
    body, width = trunk(kind)
    d = body.out_features
    heads = {
        f"t{t}": nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, CLASSES)) if big else nn.Linear(d, CLASSES) for t in range(tasks)
    }
    x, y = torch.randn(BATCH, width), torch.randint(0, CLASSES, (tasks, BATCH))
    for module in (body, *heads.values()):
        module.to(ground.device)
    return body, heads, x.to(ground.device), dict(zip(heads, y.to(ground.device), strict=True))


def ours(kind: str, tasks: int, big: bool, method: str, source: str, ground: Ground) -> Callable[[], None]:
    """One step of cotrain's own loop."""
    body, heads, x, y = parts(kind, tasks, big, ground)
    spec = {name: Task(data="d", model="m", input="x", target=name, objective="cross_entropy") for name in heads}
    module = Joint(spec, {"m": body}, heads)
    world = World(0, 1, 0, ground.device)
    engine = open_engine(module, catalog.parser("optimizer")("adamw"), ground.train, 1, world.device)
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


class Summed(nn.Module):
    """The sum of the losses."""

    def __init__(self, body: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleDict(heads)

    def forward(self, x: Tensor, y: dict[str, Tensor]) -> Tensor:
        """Of one batch."""
        z = self.body(x)
        return torch.stack([nn.functional.cross_entropy(head(z).float(), y[name]) for name, head in self.heads.items()]).sum()


def plain(kind: str, tasks: int, big: bool, ground: Ground) -> Callable[[], None]:
    """The sum of the losses, by hand: a loop as one would write it in torch, or with DeepSpeed."""
    body, heads, x, y = parts(kind, tasks, big, ground)
    model = Summed(body, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if ground.zero is None:

        def step() -> None:
            model(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    import deepspeed

    config = deepspeed_config(ground.train, 1, ground.device.type)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

    def sharded() -> None:
        engine.backward(engine(x.bfloat16(), y))
        engine.step()

    return sharded


def torchjd(kind: str, tasks: int, big: bool, how: str, ground: Ground) -> Callable[[], None]:
    """TorchJD with UPGrad: by Jacobians, batched over the tasks (its default) or task by task, or by its Gramian engine.

    Where the others train by ZeRO in bf16, it has whole float32 parameters under autocast to bf16: its solver takes no bf16.
    """
    from torchjd.aggregation import UPGrad, UPGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import jac_to_grad, mtl_backward

    body, heads, x, y = parts(kind, tasks, big, ground)
    low = torch.autocast(ground.device.type, torch.bfloat16, enabled=ground.zero is not None)
    params = [*body.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    engine, weighting, aggregator = Engine(body, batch_dim=None), UPGradWeighting(), UPGrad()

    def step() -> None:
        with low:
            z = body(x)
            losses = [nn.functional.cross_entropy(head(z).float(), y[name]) for name, head in heads.items()]
        if how == "autogram":
            stacked = torch.stack(losses)
            stacked.backward(weighting(engine.compute_gramian(stacked)))
        else:
            mtl_backward(losses, z, parallel_chunk_size=1 if "one by one" in how else None)
            jac_to_grad(body.parameters(), aggregator)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ratios(contestants: dict[str, Callable[[], None]], rounds: int, ground: Ground) -> dict[str, list[float]]:
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
            started = ground.now_s()
            contestants[name]()
            took[name] = ground.now_s() - started
        for name in took:
            found[name].append(took[name] / took[names[0]])
    return found


def peak_mib(step: Callable[[], None], ground: Ground) -> float:
    """The most memory that tensors made in a step take at a time, MiB. Parameters and the optimiser's state are made before."""
    from torch.profiler import ProfilerActivity, profile

    step()
    gc.collect()
    if ground.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ground.device)
        before = torch.cuda.memory_allocated(ground.device)
        step()
        return (torch.cuda.max_memory_allocated(ground.device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    with tempfile.TemporaryDirectory(prefix="cotrain-peak-") as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]") / 2**20


def contenders(kind: str, tasks: int, big: bool, methods: list[str], most: int, ground: Ground) -> dict[str, Callable[[], None]]:
    """Everything that is compared, the plain sum of losses first."""
    found = {"plain sum": plain(kind, tasks, big, ground), "cotrain equal": ours(kind, tasks, big, "equal", "", ground)}
    for source in SOURCES:
        for method in methods:
            found[f"cotrain {method}, {source}"] = ours(kind, tasks, big, method, source, ground)
    if tasks <= most and ground.zero != 3:  # ZeRO-3 replaces torch's linear function, which TorchJD's engine doesn't see through
        for how in ("mtl_backward", "mtl_backward one by one", "autogram"):
            found[f"TorchJD upgrad, {how}"] = torchjd(kind, tasks, big, how, ground)
    return found


def times(kind: str, big: bool, tasks: list[int], methods: list[str], rounds: int, most: int, ground: Ground) -> str:
    """Step times over the plain sum: a row a contestant, a column a number of tasks."""
    columns: dict[int, dict[str, list[float]]] = {}
    for count in tasks:
        columns[count] = ratios(contenders(kind, count, big, methods, most, ground), rounds, ground)
        gc.collect()
        print(f"{kind}, {'large' if big else 'small'} heads, T = {count}: done", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(name for found in columns.values() for name in found))[1:]
    lines = [[name, *(spread(columns[t][name]) if name in columns[t] else "not tried" for t in tasks)] for name in names]
    parameters = sum(p.numel() for p in trunk(kind)[0].parameters()) / 1e6
    heads = "two-layer heads" if big else "linear heads"
    how = "" if ground.zero is None else f", bf16, ZeRO-{ground.zero}, {_named(ground.device)}"
    return f"### {'MLP' if kind == 'mlp' else 'Transformer'} trunk of {parameters:.2f} M parameters, {heads}{how}\n\n" + table(
        ["step time over the plain sum", *(f"T = {t}" for t in tasks)], lines
    )


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def memory(tasks: int, layers: list[int], most: int, ground: Ground) -> str:
    """Peak memory over that of the plain sum, for trunks of more and more parameters."""
    kinds = [f"mlp:{n}" for n in layers]
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        for name, step in contenders(kind, tasks, False, ["upgrad"], most, ground).items():
            if name == "plain sum":
                base = peak_mib(step, ground)
            else:
                rows.setdefault(name, []).append(f"{peak_mib(step, ground) - base:+.1f}")
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
    parser.add_argument("--trunks", nargs="+", choices=["mlp", "transformer", "large"], default=["mlp", "transformer"])
    parser.add_argument("--device", type=torch.device, default=HERE.device, help="cuda: on a GPU")
    parser.add_argument("--zero", type=int, nargs="+", choices=[1, 2, 3], help="stages of ZeRO, in bf16 through DeepSpeed")
    parser.add_argument("--torchjd", type=int, default=32, metavar="T", help="TorchJD up to so many tasks: each costs it a backward pass")
    chosen = parser.parse_args()
    before = machine()
    torch.set_num_threads(1)
    methods, tasks, rounds = (METHODS[:1], [2], 2) if chosen.quick else (METHODS, chosen.tasks, chosen.rounds)
    grounds = [Ground(chosen.device, stage) for stage in sorted(chosen.zero or []) or [None]]
    if chosen.zero:
        group_of_one(chosen.device)
    parts = [f"Batch {BATCH}; median (lowest to highest) of {rounds} rounds of the transformer, {3 * rounds} of the MLP, 3 of TorchJD."]
    for ground in grounds:
        for kind in chosen.trunks:
            turns, tried = 3 * rounds if kind == "mlp" else rounds, FEWER if kind == "large" and not chosen.quick else methods
            parts += [times(kind, big, tasks, tried[:1] if big else tried, turns, chosen.torchjd, ground) for big in (False, True)]
        parts.append(memory(2 if chosen.quick else 8, [2, 6] if chosen.quick else [2, 6, 24], chosen.torchjd, ground))
    publish("balancers", before, "\n\n".join(parts), chosen.save)


if __name__ == "__main__":
    main()
