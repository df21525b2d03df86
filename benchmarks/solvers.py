"""What a call of each balancer costs, beside TorchJD's weighting on the same Gramian, in one run.

    python benchmarks/solvers.py [--tasks 2 4 8 16 32] [--rounds 30] [--output FILE]

One thread, on the CPU, float32 Gramians in turn for both. Milliseconds a call: the median over rounds, and the range between the quartiles.
TorchJD is called as its own users call it, on the Gramian where it takes one (Nash-MTL and ConFIG take the gradients).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torchjd.aggregation as jd
from torch import Tensor

from trainer.catalog import CATALOG, find

THEIRS: dict[str, Callable[[int], torch.nn.Module]] = {
    "aligned_mtl": lambda tasks: jd.AlignedMTLWeighting(),
    "cagrad": lambda tasks: jd.CAGradWeighting(c=0.5),
    "config": lambda tasks: jd.ConFIG(),
    "fairgrad": lambda tasks: jd.FairGradWeighting(alpha=2.0),
    "gradvac": lambda tasks: jd.GradVacWeighting(),
    "imtl_g": lambda tasks: jd.IMTLGWeighting(),
    "mgda": lambda tasks: jd.MGDAWeighting(),
    "nash_mtl": lambda tasks: jd.NashMTL(n_tasks=tasks),
    "pcgrad": lambda tasks: jd.PCGradWeighting(),
    "upgrad": lambda tasks: jd.UPGradWeighting(),
}
FROM_GRADIENTS = {"config", "nash_mtl"}


def gradients(tasks: int, seed: int, size: int = 256) -> Tensor:
    """Task gradients with conflicts, of norms from 1/3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=generator) + 0.5 * torch.randn(size, generator=generator)
    rows[0] -= 0.3 * rows[1:].sum(0)
    return rows * torch.logspace(-0.5, 0.5, tasks)[:, None]


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(kind: str, tasks: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of our calls and of TorchJD's, one after the other in each round."""
    balancer = find("balancer", kind)(**({"weights": {f"t{i}": 1.0 for i in range(tasks)}} if kind == "static" else {}))
    state, loss_T, present_T = balancer.init([f"t{i}" for i in range(tasks)]), torch.rand(tasks) + 0.1, torch.ones(tasks, dtype=torch.bool)
    theirs = THEIRS[kind](tasks) if kind in THEIRS else None
    ours_ms, theirs_ms = [], []
    for seed in range(rounds + 3):
        grads_TN = gradients(tasks, seed)
        gram_TT = grads_TN @ grads_TN.T
        if balancer.needs_grads:
            ours_ms.append(timed(lambda g=grads_TN: balancer.combine(g, present_T, state)))  # type: ignore[misc]
        else:
            ours_ms.append(timed(lambda g=gram_TT: balancer.weigh(loss_T, g, present_T, state)))  # type: ignore[misc]
        if theirs is not None:
            theirs_ms.append(timed(lambda g=grads_TN if kind in FROM_GRADIENTS else gram_TT: theirs(g)))  # type: ignore[misc]
    return ours_ms[3:], theirs_ms[3:]


def cell(found_ms: list[float]) -> str:
    if not found_ms:
        return "–"
    low, middle, high = statistics.quantiles(found_ms, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="also write the table here, as Markdown")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    heads = ["balancer", *(head for tasks in chosen.tasks for head in (f"T = {tasks}", "TorchJD"))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    print("\n".join(lines))
    for kind in CATALOG["balancer"]:
        cells = [cell(found) for tasks in chosen.tasks for found in measure(kind, tasks, chosen.rounds)]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
