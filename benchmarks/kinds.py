"""What each kind of joint training comes to: its example is run, and what `cotrain` says of it is written into docs/results/kinds.md.

    python benchmarks/kinds.py examples/10-mutual.yaml examples/11-multimodal.yaml

Each document is run as it stands, but with at least three seeds, its models trained jointly and alone. Lines of documents
that are not named stay.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from trainer.check import load_spec
from trainer.spec import JointSpec

SEEDS = 3
PAGE = Path("docs/results/kinds.md")
HEAD = """# What joint training of several models comes to

Written by `benchmarks/kinds.py`, which runs the examples as they stand. Values are means over seeds ± their standard deviation, on
test rows. *Alone* is what the task reaches with its own models, data and as many steps, trained without the others; the verdict on the
difference is that of `cotrain`: better or worse only where the 95 % interval over rows and seeds excludes 0.
"""


def main(documents: Sequence[str], root: str = "runs/kinds") -> None:
    """Run the documents and rewrite their sections."""
    for document in documents:
        spec = load_spec(document)
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", document, "--root", root]
        command += ["--set", f"seeds={max(SEEDS, spec.seeds)}"]
        # on one process: figures of learning, not of speed
        done = subprocess.run([*command, "--set", "cluster.processes_per_node=1"], capture_output=True, text=True, check=False)
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        keys = {(e["step"], e.get("task")): e["key"] for e in events if e["event"] == "step_finished" and e.get("key")}
        if ("compare", None) not in keys:
            raise SystemExit(f"{document} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        verdict = json.loads((Path(root) / "results" / "compare" / keys["compare", None] / "verdict.json").read_text())
        write(spec, document, verdict, Path(root))


def write(spec: JointSpec, document: str, verdict: dict[str, Any], root: Path) -> None:
    """Replace the section of a document."""
    page = PAGE.read_text() if PAGE.exists() else HEAD
    sections = dict(re.findall(r"^<!-- (\S+) -->\n(.*?)(?=^<!-- \S+ -->\n|\Z)", page, re.M | re.S))
    sections[document] = "\n".join(lines(spec, document, verdict, root)) + "\n\n"
    PAGE.write_text(HEAD + "\n" + "".join(f"<!-- {name} -->\n{text}" for name, text in sorted(sections.items())).rstrip() + "\n")


def lines(spec: JointSpec, document: str, verdict: dict[str, Any], root: Path) -> Iterator[str]:
    """The section of a document."""
    cost = verdict["cost"]
    yield f"## {spec.name}\n"
    flops = [verdict["cost"][role]["flops_per_row"] for role in ("joint", "independent")]
    yield (
        f"[`{document}`](../../{document}), {verdict['seeds']} seeds. {cost['joint']['parameters']:,} parameters in one model,"
        f" {cost['independent']['parameters']:,} in one per task"
        + ("; {:,} FLOPs to predict all tasks of a row, and {:,}.\n".format(*flops) if None not in flops else ".\n")
    )
    yield "| task | metric | joint | alone | difference (95 %) | verdict |"
    yield "|---|---|---|---|---|---|"
    for task, entry in verdict["tasks"].items():
        scores = scores_of(root, task, entry)
        for metric in scores["higher_is_better"]:
            joint, alone = ([run["metrics"][metric]["value"] for run in scores["models"][role]] for role in ("joint", "independent"))
            vs = entry["vs_independent"] if metric == entry["metric"] else None
            told = f"{vs['difference']:+.4f} ({vs['low']:+.4f} to {vs['high']:+.4f})" if vs and vs["difference"] is not None else ""
            yield f"| {task} | {metric} | {spread(joint)} | {spread(alone)} | {told} | {vs['verdict'] if vs else ''} |"
    yield from without(spec, verdict, root)


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation."""
    found = [v for v in values if v is not None]
    if not found:
        return "–"
    return f"{mean(found):.4f} ± {stdev(found):.4f}" if len(found) > 1 else f"{found[0]:.4f}"


def scores_of(root: Path, task: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The scores that a verdict was made of: the newest of the task with its values."""
    found = sorted((root / "results" / "score").glob("*/scores.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        scores = json.loads(path.read_text())
        mine = [run["metrics"][scores["primary"]]["value"] for run in scores["models"]["joint"]] if scores["task"] == task else []
        if mine and mine == entry["joint"]["seeds"]:
            return scores
    raise SystemExit(f"no scores of {task} below {root}")


def without(spec: JointSpec, verdict: dict[str, Any], root: Path) -> Iterator[str]:
    """The primary metric of tasks on several modalities as each of them is taken away."""
    lines = []
    for task in spec.judged_tasks:
        scores = scores_of(root, task, verdict["tasks"][task])
        runs, metric = scores["models"]["joint"], scores["primary"]
        columns = list(runs[0]["without"])
        if columns:
            values = [[run["metrics"][metric]["value"] for run in runs], *([run["without"][c][metric] for run in runs] for c in columns)]
            lines.append(f"| {task} ({', '.join(columns)}) | {metric} | " + " | ".join(map(spread, values)) + " |")
    if not lines:
        return
    yield "\nThe same models when a modality is taken away from all test rows:\n"
    yield "| task | metric | all | without the first | without the second |"
    yield "|---|---|---|---|---|"
    yield from lines


if __name__ == "__main__":
    main(sys.argv[1:])
