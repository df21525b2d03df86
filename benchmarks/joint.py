"""Time of one joint training over the sum of the independent ones, per example, with what it did to quality.

Read from the verdicts of whole runs of the examples. Times are of training itself, without starting processes,
validation and checkpoints; the time of a run with all of that is beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import apart, arguments, machine, publish, table

ROOT = Path(__file__).parents[1]


def verdict(example: Path, root: str, steps: int | None, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict of an example, run now or found below the root."""
    from pipelines.execute import execute
    from trainer.check import load_spec
    from trainer.results import fetch

    spec = load_spec(str(example), list(changes))
    if steps:
        cut = [f"phases.{phase}.{field}" for phase in spec.phases for field in (f"steps={steps}", "epochs=null")]
        spec = load_spec(str(example), [*cut, *changes])
    with tempfile.TemporaryDirectory(prefix="cotrain-joint-") as logs:
        finished = execute(spec, root, Path(logs) / "run", lambda event: None)
    found = fetch(root, "compare", finished.verdict_key)
    assert found is not None
    return found.json("verdict.json")


def rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    """A row per task; the times stand in the first."""
    cost = found["cost"]
    joint, alone = cost["joint"], cost["independent"]
    times = [
        name,
        f"{joint['seconds']:.1f} / {alone['seconds']:.1f} s = {joint['seconds'] / max(alone['seconds'], 1e-9):.2f}",
        f"{joint['wall_seconds']:.1f} / {alone['wall_seconds']:.1f} s = {joint['wall_seconds'] / max(alone['wall_seconds'], 1e-9):.2f}",
    ]
    lines = []
    for task, entry in found["tasks"].items():
        against = entry["vs_independent"]
        values = [entry[side]["value"] for side in ("joint", "independent")]
        shown = ["undefined" if value is None else f"{value:.4f}" for value in values]
        difference = "undefined"
        if against["difference"] is not None:
            difference = f"{against['difference']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})"
        lines.append([*times, f"{task}, {entry['metric']}", *shown, difference, against["verdict"]])
        times = ["", "", ""]
    return lines


def main() -> None:
    """Print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--root", help="where results are looked for and kept; a new folder if not given")
    parser.add_argument("--steps", type=int, help="train every phase for this many steps only")
    parser.add_argument("examples", nargs="*", type=Path, help="default: all of examples/; with --quick the first")
    options = parser.parse_args()
    examples = options.examples or sorted((ROOT / "examples").glob("*.yaml"))[: 1 if options.quick else None]
    steps = options.steps or (10 if options.quick else None)
    changes = ["cluster.processes_per_node=1"] if options.quick else []
    before = machine()
    from trainer.errors import UserError

    lines, left_out = [], []
    with apart() as scratch:
        for example in examples:
            try:
                lines += rows(example.stem, verdict(example, options.root or str(scratch / "root"), steps, changes))
            except UserError as error:  # such as data that was not fetched
                left_out.append(f"{example.stem} was left out: {error}")
    head = ["example", "training, joint / alone", "with starting and validation", "task", "joint", "alone", "difference (95 %)", "verdict"]
    cut = f"Every phase was cut to {steps} steps.\n\n" if steps else ""
    publish("joint", before, "\n\n".join([f"{cut}{table(head, lines)}", *left_out]), options.save)


if __name__ == "__main__":
    main()
