"""What the benchmarks share: the machine in words, ratios with their spread, and the page the figures go to."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "deepspeed", "kfp", "torchmetrics")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the least work that shows every figure; the figures mean little")
    parser.add_argument("--save", type=Path, metavar="PAGE.md", help="put the figures on this page, in place of those of an earlier run")
    return parser


@contextmanager
def apart() -> Iterator[Path]:
    """A folder for results, events and locks of its own: a training elsewhere on this machine is not waited for."""
    with tempfile.TemporaryDirectory(prefix="cotrain-benchmark-") as folder:
        kept = {name: os.environ.get(name) for name in ("TMPDIR", "COTRAIN_EVENTS")}
        os.environ |= {"TMPDIR": folder, "COTRAIN_EVENTS": str(Path(folder) / "events.jsonl")}
        tempfile.tempdir = None  # so that TMPDIR is looked at
        try:
            yield Path(folder)
        finally:
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            tempfile.tempdir = None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the lowest and highest value."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can also be read as it is."""
    widths = [max(len(row[c]) for row in (head, *rows)) for c in range(len(head))]
    line = lambda row: "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def machine() -> str:
    """The machine, how busy it is with other things, and the versions that matter."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())):
        model = found[1]
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}"


def publish(name: str, before: str, text: str, save: Path | None, part: str = "") -> None:
    """Print the figures, and put them in their place on a page if there is one.

    Args:
        name: of the benchmark.
        part: of the benchmark that has a place of its own on the page.
        before: the machine as it was before the benchmark loaded it.
        text: Markdown.
    """
    command = " ".join(["python -m", f"benchmarks.{name}", *(a for a in sys.argv[1:] if a != "--save" and a != str(save))])
    body = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}: {before}\n\n{text}"
    print(f"\n{body}\n", flush=True)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        old = save.read_text() if save.exists() else ""
        place = f"{name} {part}".strip()
        start, end = f"<!-- {place} -->", f"<!-- end of {place} -->"
        section = f"{start}\n{body}\n{end}"
        found = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
        save.write_text(found.sub(lambda _: section, old) if found.search(old) else f"{old.rstrip()}\n\n{section}\n".lstrip())
