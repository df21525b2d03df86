"""Samples per second of cotrain's loop beside a loop written by hand in plain PyTorch, and what a second rank adds.

Both loops train the same initial weights on the same rows in the same order with the same losses, clipping,
learning rates and optimiser, which the loop by hand makes once as `torch.optim.AdamW` makes it by default and once
fused, as cotrain has it on CPUs. The one written by hand does nothing else: its rows lie ready as tensors in memory,
it counts no valid targets, keeps no means and can't be stopped. Rounds of the loops alternate in one process, so
that whatever else the machine does falls on all alike; a ratio is made of neighbours in time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from benchmarks.common import apart, arguments, machine, publish, spread, table

Json = dict[str, Any]
Clock = Callable[[], float]

MODELS: dict[str, Json] = {
    "digits, mlp": {
        "data": {"rows": {"kind": "digits"}},
        "models": {"trunk": {"kind": "mlp", "hidden": [256, 256], "dropout": 0.2}},
        "tasks": {name: {"data": "rows", "model": "trunk", "input": "image", "target": name} for name in ("digit", "parity", "ink")},
        "train": {"optimizer": {"kind": "adamw", "lr": 2.0e-3, "weight_decay": 0.05}, "batch": 64},
    },
    "28x28, conv": {
        "data": {
            "rows": {
                "kind": "benchmarks.inputs:pictures",
                "args": {"rows": 4000},
                "columns": {"image": {"kind": "image", "shape": [1, 28, 28]}, "label": "category", "even": "category"},
            }
        },
        "models": {"trunk": {"kind": "conv", "channels": [32, 64]}},
        "tasks": {name: {"data": "rows", "model": "trunk", "input": "image", "target": name} for name in ("label", "even")},
        "train": {"optimizer": {"kind": "adamw", "lr": 1.0e-3}, "batch": 64},
    },
    "text, transformer": {
        "data": {
            "rows": {
                "kind": "benchmarks.inputs:texts",
                "args": {"rows": 2000},
                "columns": {"text": {"kind": "text", "max_tokens": 96, "vocab_size": 4096}, "rating": "category", "good": "category"},
            }
        },
        "models": {"trunk": {"kind": "text_transformer", "width": 128, "layers": 4}},
        "tasks": {name: {"data": "rows", "model": "trunk", "input": "text", "target": name} for name in ("rating", "good")},
        "train": {"optimizer": {"kind": "adamw", "lr": 3.0e-4}, "batch": 64},
    },
}
STEPS = {"digits, mlp": 1200, "28x28, conv": 40, "text, transformer": 4}


@dataclass
class Job:
    """One model with its prepared rows."""

    spec: Any
    data: Json
    root: str

    def request(self, seed: int, ranks: int = 1) -> Json:
        """A training request of its own for each seed."""
        from trainer.requests import joint_requests

        cluster = self.spec.cluster.model_copy(update={"processes_per_node": ranks})
        return joint_requests(self.spec.model_copy(update={"seed": seed, "cluster": cluster}), self.data)[0]


def prepared(name: str, steps: int, root: str, **train: Any) -> Job:
    """Prepare the rows of a model once, for `steps` steps of each loop."""
    from trainer.check import load_spec
    from trainer.prepare import prepare

    document: Json = MODELS[name] | {"name": "speed", "phases": {"joint": {"steps": steps}}, "compare": {"independent": False}}
    document["train"] = document["train"] | {"validate_every": steps, "checkpoint": {"every_minutes": None}} | train
    spec = load_spec(document)
    results = {data: prepare(data, part, root) for data, part in spec.data.items()}
    manifests = {data: result.json("manifest.json") for data, result in results.items()}
    return Job(spec, {d: {"key": results[d].key, "digest": m["digest"], "rows": m["rows"]} for d, m in manifests.items()}, root)


def ours(job: Job, seed: int, clock: Clock = time.perf_counter, deepspeed: bool = False) -> tuple[float, Json]:
    """Samples per second of cotrain's own loop by a clock, and the parameters it came to."""
    import torch

    from trainer import engine, run
    from trainer.results import fetch
    from trainer.world import World

    request = job.request(seed)
    before = run.open_engine, run.time
    run.time = SimpleNamespace(perf_counter=clock, monotonic=time.monotonic, time=time.time)  # type: ignore[assignment]
    if deepspeed:
        run.open_engine = engine._DeepSpeedEngine
    try:
        running = run.Run(request, job.root, World(0, 1, 0, torch.device("cpu")), time.time())
        running.run()
    finally:
        run.open_engine, run.time = before
    done = fetch(job.root, "train", request["key"])
    assert done is not None
    result = done.json("result.json")
    return result["samples"] / result["seconds"]["train"], running.saved.params


def by_hand(job: Job, seed: int, clock: Clock = time.perf_counter, fused: bool | None = None) -> tuple[float, Json]:
    """Samples per second of a loop in plain PyTorch by a clock, and the parameters it came to."""
    import numpy as np
    import torch
    from torch.nn import functional

    from trainer.joint import build, seed_of
    from trainer.order import Order
    from trainer.plan import learning_rate
    from trainer.results import fetch
    from trainer.shards import Split

    spec, batch = job.spec, job.spec.train.batch
    found = fetch(job.root, "data", job.data["rows"]["key"])
    assert found is not None
    fitted, split = found.json("fitted.json"), Split(found.folder, found.json("manifest.json"), "train")
    every, columns = np.arange(len(split)), spec.data["rows"].columns
    column = {name: columns[name].tensor(split.gather(name, every), fitted[name]) for name in columns}
    module = build(spec, {"rows": fitted}, seed=seed)
    trunk = module.models["trunk"]
    inputs = column[next(iter(spec.tasks.values())).input]
    tasks = [(module.heads[name], column[task.target], fitted[task.target]["kind"] == "category") for name, task in spec.tasks.items()]
    steps, settings = spec.phases["joint"].steps, spec.train.optimizer
    parameters = list(module.parameters())
    chosen = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay, "fused": fused}
    optimizer = torch.optim.AdamW(parameters, **chosen)
    rows = torch.from_numpy(Order(len(split), seed, "rows").take(0, steps * batch).copy())
    rates = [learning_rate(spec, settings.lr, step, steps) for step in range(steps)]
    torch.manual_seed(seed_of(seed, "by hand"))
    module.train()

    started = clock()
    for step in range(steps):
        index = rows[step * batch : (step + 1) * batch]
        z = trunk(inputs.index_select(0, index))
        loss = torch.zeros(())
        for head, target, category in tasks:
            wanted = target.index_select(0, index)
            loss = loss + (functional.cross_entropy(head(z), wanted) if category else functional.mse_loss(head(z)[:, 0], wanted))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.train.clip)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
    seconds = clock() - started
    return steps * batch / seconds, {name: p.detach() for name, p in module.named_parameters()}


def alternate(job: Job, rounds: int) -> dict[str, list[float]]:
    """Samples per second of each loop, by the clock on the wall and by processor time, a value a round."""
    rates: dict[str, list[float]] = {}
    for turn in range(-1, rounds):  # the first warms up and is not counted
        seed = 10 * (turn + 1)  # each result has a key of its own
        pairs: list[dict[str, Callable[[], tuple[float, Json]]]] = [
            {"ours": lambda: ours(job, seed), "by hand": lambda: by_hand(job, seed)},  # noqa: B023
            {
                "ours, processor": lambda: ours(job, seed + 1, time.process_time),  # noqa: B023
                "by hand, processor": lambda: by_hand(job, seed + 1, time.process_time),  # noqa: B023
                "by hand, fused": lambda: by_hand(job, seed + 1, time.process_time, fused=True),  # noqa: B023
            },
            {"deepspeed": lambda: ours(job, seed + 2, deepspeed=True)},  # noqa: B023
        ]
        for pair in pairs:
            for loop in list(pair) if turn % 2 else reversed(list(pair)):
                rate, _ = pair[loop]()
                if turn >= 0:
                    rates.setdefault(loop, []).append(rate)
    return rates


def ranks_rate(job: Job, seed: int, ranks: int) -> float:
    """Samples per second as the launcher runs it: all cores for one rank, or shared out among several."""
    from components.launch import train_here

    result = train_here(job.root, job.request(seed, ranks)).json("result.json")
    return result["samples"] / result["seconds"]["train"]


def main() -> None:
    """Print the ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each loop (default 9)")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="NAME", help=f"of {list(MODELS)}")
    parser.add_argument("--no-ranks", action="store_true", help="leave out the second rank")
    options = parser.parse_args()
    rounds, few = (2, 1) if options.quick else (options.rounds, max(1, options.rounds // 3))
    before = machine()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    alone, several = [], []
    with apart() as folder:
        root = str(folder / "root")
        for name in options.models:
            job = prepared(name, max(2, STEPS[name] // 100) if options.quick else STEPS[name], root)
            rates = alternate(job, rounds)
            ratio = lambda one, other: spread([a / b for a, b in zip(rates[one], rates[other], strict=True)])  # noqa: B023, E731
            by_processor = [ratio("ours, processor", f"by hand, {which}") for which in ("processor", "fused")]
            alone.append([name, spread(rates["by hand"], 0), ratio("ours", "by hand"), *by_processor, ratio("deepspeed", "by hand")])
            print(" | ".join(alone[-1]), flush=True)
            if options.no_ranks:
                continue
            pairs = []
            steps = 4 if options.quick else 2 * STEPS[name]
            job = prepared(name, steps, root)
            for turn in range(few):
                order = (1, 2) if turn % 2 else (2, 1)
                pair = {ranks: ranks_rate(job, 50_000 + turn, ranks) for ranks in order}
                pairs.append(pair)
            several.append([name, spread([p[1] for p in pairs], 0), spread([p[2] / p[1] for p in pairs])])
            print(" | ".join(several[-1]), flush=True)
    text = "Samples per second on one process and one thread, as a ratio to the loop by hand: median (lowest to highest round).\n\n"
    head = [
        "model",
        "by hand, samples/s",
        "cotrain / by hand",
        "the same by processor time",
        "by processor time, by hand with fused AdamW",
        "cotrain with DeepSpeed's engine / by hand",
    ]
    text += table(head, alone)
    if several:
        text += f"\n\nTwo ranks with a core each, against one rank with all {os.cpu_count()} cores; the same batch in all.\n\n"
        text += table(["model", "1 rank, samples/s", "2 ranks / 1 rank"], several)
    publish("loop", before, text, options.save)


if __name__ == "__main__":
    main()
