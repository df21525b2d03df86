"""The benchmarks print what they promise, and the loops they compare train the same thing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import balancer_page, common, loop, pipeline, results_balancers

ROOT = Path(__file__).parents[2]
RATIO = r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)"


def quick(name: str, *options: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COTRAIN_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", loop.MODELS)
def test_the_loop_by_hand_and_ours_end_with_the_same_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = loop.MODELS[name]["models"]["trunk"] | ({} if "conv" in name else {"dropout": 0.0})
    monkeypatch.setitem(loop.MODELS, name, loop.MODELS[name] | {"models": {"trunk": trunk}})
    with common.apart() as folder:
        job = loop.prepared(name, 5, str(folder / "root"))
        _, mine = loop.ours(job, 7)
        _, plain = loop.by_hand(job, 7)
    assert mine.keys() == plain.keys()
    for parameter, value in mine.items():
        torch.testing.assert_close(value, plain[parameter], atol=2e-5, rtol=1e-3, msg=lambda text, p=parameter: f"{p}: {text}")


def test_the_loop_benchmark_prints_ratios_with_their_spread_for_every_model_and_saves_them(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("# Speed\n\n<!-- loop -->\nold\n<!-- end of loop -->\n\nkept\n")
    said = quick("loop", "--models", "digits, mlp", "--save", str(page))
    assert re.search(rf"\| digits, mlp +\| [^|]+\| {RATIO} +\| {RATIO} +\| {RATIO} +\|", said)
    assert len(re.findall(rf"^\| digits, mlp .*{RATIO} +\|$", said, re.M)) == 2, "one process, and two ranks against one"
    saved = page.read_text()
    assert "old" not in saved
    assert saved.startswith("# Speed")
    assert saved.rstrip().endswith("kept")
    assert "cores of" in saved


def test_the_joint_benchmark_prints_times_and_quality_for_each_task() -> None:
    said = quick("joint")
    for task in ("digit, accuracy", "parity, accuracy", "ink, r2"):
        assert re.search(rf"\| {task} +\| +-?\d\.\d{{4}} +\| +-?\d\.\d{{4}} +\| [+-]\d\.\d{{4}} \([+-]\S+ to [+-]\S+\)", said), task
    assert re.search(r"\| 01-digits +\| \d+\.\d / \d+\.\d s = \d\.\d\d", said)


def test_the_pipeline_benchmark_prints_where_the_time_goes_and_the_parts_up_to_the_first_step() -> None:
    said = quick("pipeline")
    assert re.search(r"not preparing, training or evaluating: \d+ \(\d+ to \d+\) %", said)
    for part in ("preparing", "KFP between steps", "training: imports", "training: engine", "training: first step"):
        assert re.search(rf"^\| {part} +\| \d+\.\d", said, re.M), part


def test_every_moment_of_a_run_counts_once() -> None:
    events = [
        {"event": "step_finished", "time": 12.0, "seconds": 2.0, "step": "prepare"},
        {"event": "phase_started", "time": 15.0, "role": "joint"},
        {"event": "phase_finished", "time": 18.0, "role": "joint"},
        {"event": "step_finished", "time": 19.0, "seconds": 6.0, "step": "train"},
        {"event": "step_finished", "time": 20.0, "seconds": 3.0, "step": "compare"},
    ]
    found = pipeline.where(9.0, 21.0, events)
    assert sum(found.values()) == pytest.approx(12.0)
    assert found["preparing"] == pytest.approx(2.0)
    assert found["training"] == pytest.approx(3.0)
    assert found["training starts or ends"] == pytest.approx(3.0)
    assert found["other steps"] == pytest.approx(1.0)
    assert found["KFP between steps"] == pytest.approx(1.0)


def test_spread_is_median_lowest_and_highest() -> None:
    assert common.spread([0.5, 3.0, 1.0]) == "1.00 (0.50 to 3.00)"


def test_the_benchmark_of_balancers_prints_time_and_memory_beside_torchjd_and_saves_them(tmp_path: Path) -> None:
    said = quick("balancers", "--trunks", "mlp", "--save", str(tmp_path / "cost.md"))
    for name in (
        "cotrain equal",
        "cotrain upgrad, representation",
        "cotrain upgrad, last_layer",
        "TorchJD upgrad, mtl_backward",
        "TorchJD upgrad, autogram",
    ):
        assert len(re.findall(rf"^\| {name} +\| {RATIO} +\|$", said, re.M)) == 2, "small heads and large ones"
        (memory,) = re.findall(rf"^\| {name} +\| ([+-]\d+\.\d) +\| ([+-]\d+\.\d) +\|$", said, re.M)
        grows = float(memory[1]) - float(memory[0])
        assert grows > 10 if name == "TorchJD upgrad, mtl_backward" else abs(grows) < 1 or "TorchJD" in name
    assert "cotrain upgrad, last_layer" in (tmp_path / "cost.md").read_text()


def test_what_balancing_costs_is_measured_in_bf16_beside_zero_too() -> None:
    said = quick("balancers", "--trunks", "mlp", "--zero", "3", "1")
    for name in ("cotrain equal", "cotrain upgrad, representation", "cotrain upgrad, last_layer"):
        assert len(re.findall(rf"^\| {name} +\| {RATIO} +\|$", said, re.M)) == 4, "two stages, small heads and large ones"
    assert re.findall(r"bf16, ZeRO-(\d)", said) == ["1", "1", "3", "3"]
    assert "TorchJD upgrad, autogram" in said[: said.index("ZeRO-3")]


def test_results_of_balancers_come_from_whole_runs_and_are_found_again(tmp_path: Path) -> None:
    options = [
        "--settings",
        "eight",
        "--methods",
        "upgrad",
        "--root",
        str(tmp_path / "runs"),
        "--save",
        str(tmp_path / "docs" / "results" / "balancers.md"),
    ]
    said = quick("results_balancers", *options)
    number = r"[+-]\d+\.\d\d"
    for name in ("independent training", "`upgrad`", "`equal`, tuned", "`static`, tuned"):
        (line,) = re.findall(rf"^\| {name} +\|(.*)\|[^|]*\|$", said, re.M)
        assert len(re.findall(r"\b[01]\.\d{3}\b", line)) == len(results_balancers.settings()["eight"].tasks)
        assert len(re.findall(rf"{number} \({number} to {number}\)", line)) == (3 if name == "`upgrad`" else 2)
    drawn = (tmp_path / "docs" / "pictures" / "balancers.svg").read_text()
    assert "var(--ink)" in drawn
    assert "upgrad" in drawn
    made = sorted((tmp_path / "runs" / "results" / "train").iterdir())
    assert tables(quick("results_balancers", *options)) == tables(said)
    assert sorted((tmp_path / "runs" / "results" / "train").iterdir()) == made


def tables(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("|")]


def test_an_improvement_is_bounded_and_its_other_way_round_is_its_negative() -> None:
    seeds = [{"independent": ("", {"a": 0.0, "b": 0.8}), "equal": ("", {"a": 1e-12, "b": 0.4})}] * 2
    judged = balancer_page.Judged("x", "X", ["a", "b"], seeds)
    there, back = judged.improvement("equal", "independent"), judged.improvement("independent", "equal")
    np.testing.assert_allclose(there, -back)
    assert (np.abs(there) <= 100).all()
    assert results_balancers.bounded("r2", -1e9) == pytest.approx(0, abs=1e-8)
    assert [results_balancers.bounded("r2", r2) for r2 in (1.0, 0.0)] == [1.0, 0.5]
    assert results_balancers.bounded("accuracy", float("nan")) == 0


def test_an_interval_over_seeds_is_students() -> None:
    mean, low, high = balancer_page.interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (mean, low, high) == pytest.approx((3, 3 - 1.9633, 3 + 1.9633), abs=1e-3)
