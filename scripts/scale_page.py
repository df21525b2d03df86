"""Write the tables and the picture of docs/scale.md from `trainer/scale.py`.

python scripts/scale_page.py            write them
python scripts/scale_page.py --check    exit code 1 if the tables are not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.scale_report import amount, at_stage, seconds
from trainer.catalog import find
from trainer.scale import (
    Machines,
    Shape,
    Simulated,
    balancer_elements,
    daly_s,
    elastic_goodput,
    goodput,
    memory_bytes,
    restart_s,
    saving,
    sent_bytes,
    shards_read,
    simulate,
    step_seconds,
)
from trainer.spec import Train

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
PICTURE = PAGE.parent / "pictures" / "goodput.svg"
TRAIN = Train(precision="bf16")
SIZES = {"100 M": 10**8, "1 B": 10**9, "7 B": 7 * 10**9, "70 B": 70 * 10**9}


def table(*rows: list[str]) -> Iterator[str]:
    """Lines of a table whose first row is its head."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if not number:
            yield "|" + "---|" * len(row)


def memory() -> Iterator[str]:
    """Bytes of a rank by stage and ranks."""
    ranks = (8, 64, 1024, 8000)
    shape = Shape(SIZES["7 B"])
    rows = [
        [f"ZeRO {stage}", *(amount(sum(memory_bytes(shape, at_stage(TRAIN, stage), n, "cuda", 0).values())) for n in ranks)]
        for stage in (1, 2, 3)
    ]
    return table(["", *(f"{n:,} ranks" for n in ranks)], *rows)


def exchange() -> Iterator[str]:
    """What a rank sends in a step, and how long that takes."""
    rows = []
    for name, parameters in SIZES.items():
        row = [name]
        for stage in (1, 2, 3):
            train = at_stage(TRAIN, stage)
            took = step_seconds(Shape(parameters), train, Machines(1000, 8), "cuda", 1)
            row.append(f"{amount(sum(sent_bytes(Shape(parameters), train, 8000, 'cuda').values()))}, {seconds(took.total_s)}")
        rows.append(row)
    return table(["parameters", "ZeRO 1", "ZeRO 2", "ZeRO 3"], *rows)


def gramian() -> Iterator[str]:
    """What balancers that read gradients add to it."""
    upgrad = find("balancer", "upgrad")
    rows = []
    for tasks in (2, 4, 16, 64):
        shape = Shape(SIZES["7 B"], tasks=tasks, layer_outputs=4096, layer_inputs=4096, shared_parameters=SIZES["7 B"])
        row = [str(tasks)]
        for gram in ({"source": "representation"}, {"source": "last_layer"}, {"source": "exact", "every": 100}):
            balancer = upgrad(gram=gram)
            took = step_seconds(shape, TRAIN, Machines(1000, 8), "cuda", 1, balancer)
            row.append(f"{amount(2 * 4 * balancer_elements(shape, balancer))}, {seconds(took.balancer_s)}")
        rows.append(row)
    return table(["tasks", "representation", "last_layer", "exact, each 100 steps"], *rows)


def expected(parameters: int, machines: Machines) -> tuple[float, float, float, float]:
    """Checkpoint cost, restart, best interval (seconds) and goodput."""
    shape = Shape(parameters)
    cost_s, again_s = saving(shape, machines).cost_s, restart_s(shape, machines)
    best_s = daly_s(cost_s, machines.mtbf_s)
    return cost_s, again_s, best_s, goodput(best_s, cost_s, again_s, machines.mtbf_s)


def lived(parameters: int, machines: Machines) -> Simulated:
    """Simulated runs of the same."""
    cost_s, again_s, best_s, _ = expected(parameters, machines)
    return simulate(best_s, cost_s, again_s, machines.mtbf_s, runs=200, intervals=max(100, round(40 * machines.mtbf_s / best_s)))


def failures() -> Iterator[str]:
    """Goodput by model and nodes."""
    rows = []
    for name, parameters in SIZES.items():
        for nodes in (10, 100, 1000):
            machines = Machines(nodes, 8)
            cost_s, again_s, best_s, share = expected(parameters, machines)
            found = lived(parameters, machines)
            stop_s = restart_s(Shape(parameters), machines, replaced=False)
            join_s = cost_s + stop_s - machines.notice_s
            elastic = elastic_goodput(best_s, cost_s, stop_s, join_s, machines.replace_s, machines)
            rows.append(
                [name, f"{nodes:,}", seconds(cost_s), seconds(again_s), seconds(machines.mtbf_s), seconds(best_s), f"{100 * share:.1f} %",
                 f"{100 * found.goodput:.1f} ± {100 * found.error:.1f} %", f"{100 * elastic:.1f} %"]
            )  # fmt: skip
    head = ["parameters", "nodes", "checkpoint", "restart", "between failures", "between checkpoints", "goodput", "simulated", "elastic"]
    return table(head, *rows)


def shards() -> Iterator[str]:
    """How much of a dataset a node reads."""
    counts, nodes = (10, 500, 10_000), (1, 8, 100, 1000, 8000)
    rows = [[f"{n:,}", *(f"{100 * shards_read(10**7, count, n):.1f} %" for count in counts)] for n in nodes]
    return table(["nodes", *(f"{count:,} shards" for count in counts)], *rows)


TABLES = {"memory": memory, "exchange": exchange, "gramian": gramian, "failures": failures, "shards": shards}


def page() -> str:
    """The page with the tables as they should be."""
    text = PAGE.read_text()
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: written by scripts/scale_page.py, `make docs` -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"{PAGE} has no place for the table '{name}'")
        text = before + "\n".join([begin, *make(), "", end]) + after
    return text


def draw() -> None:
    """Goodput over nodes: lines are the formula, points are simulated."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "cotrain", "svg.fonttype": "none", "font.size": 11})
    import matplotlib.pyplot as plt

    nodes = [round(10 ** (n / 8)) for n in range(29)]
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for (name, parameters), colour in zip(SIZES.items(), ("#3b6fb6", "#2f8f5b", "#c47a1b", "#b23a48"), strict=True):
        shares = [100 * expected(parameters, Machines(n, 8))[3] for n in nodes]
        axes.plot(nodes, shares, color=colour, label=f"{name} parameters")
        some = [n for n, share in zip(nodes[4::4], shares[4::4], strict=True) if share > 2]
        points = [lived(parameters, Machines(n, 8)) for n in some]
        axes.errorbar(some, [100 * p.goodput for p in points], yerr=[200 * p.error for p in points], fmt="o", ms=4, color=colour, capsize=2)
    axes.set(xscale="log", xlabel="nodes of 8 GPUs", ylabel="time that is of use, %", ylim=(0, 101), xlim=(1, 3200))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> int:
    """Write the page and the picture; with `--check` only say whether the page is up to date."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
