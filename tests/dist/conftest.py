"""Every training that needs several ranks but no processes of its own, in two process groups: one of 2 ranks and one of 3."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from training_cases import SECOND_STOP, Garden, Ranks


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of runs in this process go to a file; but not those of whatever other tests come to this process after these."""
    monkeypatch.setenv("COTRAIN_EVENTS", str(tmp_path / "events.jsonl"))


@pytest.fixture(scope="session")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Garden:
    return Garden(tmp_path_factory.mktemp("garden"))


@pytest.fixture(scope="session")
def two(garden: Garden) -> Ranks:
    """Two ranks, on a machine whose compilers don't work."""
    jobs = [garden.job(label, "two") for label in garden.specs]
    jobs += [garden.job(label, "two-without", without="_forget_gradients") for label in ("absent-3", "absent-1-offload")]
    for label in garden.specs:
        if label.startswith("resume"):
            jobs += [garden.job(label, "two-stopped", stop=stop) for stop in (["first", 2], SECOND_STOP, None)]
    jobs += [garden.job("normed", "two-stopped", stop=stop) for stop in (SECOND_STOP, None)]
    jobs += [garden.job(f"boxes-{stage}", "two-stopped", stop=stop) for stage in (0, 3) for stop in (["joint", 2], None)]
    jobs += [garden.job("order", "chain", stop=["all", 4])]
    tools, extensions = garden.root / "tools", garden.root / "extensions"
    tools.mkdir()
    extensions.mkdir()
    for name in ("gcc", "g++", "cc", "c++", "clang", "clang++", "nvcc", "ninja"):
        (tools / name).write_text(f'#!/bin/sh\necho "$0 $*" >> {tools}/called\nexit 127\n')
        (tools / name).chmod(0o755)
    env = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "TORCH_EXTENSIONS_DIR": str(extensions)}
    return Ranks(garden, 2, jobs, env)


@pytest.fixture(scope="session")
def three(garden: Garden, two: Ranks) -> Ranks:
    """Three ranks, which also go on with what two ranks and one began."""
    garden.alone("order", "chain", stop=["proportional", 6])
    labels = [label for label in garden.specs if label.startswith("sums")] + ["absent-0", "absent-1", "absent-3", "order"]
    return Ranks(garden, 3, [garden.job(label, "three") for label in labels] + [garden.job("order", "chain")])


@pytest.fixture(scope="session")
def one(garden: Garden) -> Garden:
    """One rank without DeepSpeed, in this process. ZeRO stages mean nothing to it."""
    for label in ("sums-0-1", "sums-0-4", "absent-0", "clip-0.05-0", "clip-None-0", "frozen-fp32-0", "text-0", "boxes-0"):
        garden.alone(label)
    return garden
