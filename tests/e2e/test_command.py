"""The `cotrain` command: whose fault it is, what it imports, and what `plan`, `compile` and `doctor` say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import cotrain, document, environment, write, write_csv

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "table.csv")
    return tmp_path


def faults(err: str) -> list[tuple[str, str]]:
    """Place with finding, and remedy, of each fault. Nothing else may be said."""
    lines = err.splitlines()
    assert len(lines) % 2 == 0, err
    assert all(line.startswith("    fix: ") for line in lines[1::2]), err
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_every_fault_of_a_document_is_told_before_anything_runs(folder):
    made = document()
    made["tasks"]["side"]["model"] = "trunc"
    made["phases"]["joint"]["balancer"] = "equl"
    found = faults(cotrain(folder, "run", write(folder, made), code=2).err)
    assert [(place.split(": ")[1], "did you mean" in fix) for place, fix in found] == [
        ("tasks.side.model", True),
        ("phases.joint.balancer", True),
    ]
    assert not (folder / "runs").exists()


def test_a_document_or_a_file_that_is_not_there_is_told(folder):
    spec = write(folder, document())
    ((place, _),) = faults(cotrain(folder, "run", "jib.yaml", code=2).err)
    assert place == "jib.yaml: there is no such document"
    (folder / "table.csv").unlink()
    ((place, _),) = faults(cotrain(folder, "run", spec, code=2).err)
    assert "data.table" in place and "table.csv" in place


def test_rows_that_are_wrong_are_told_as_they_are_found_inside_the_pipeline(folder):
    with (folder / "table.csv").open("a") as table:
        table.write("0.1,much,left,0.5\n")
    ran = cotrain(folder, "run", write(folder, document()), code=2)
    ((place, _),) = faults(ran.err)
    assert "much" in place and "b" in place
    assert ran.of("step_failed", step="prepare", error="DataError")
    assert not list(folder.glob("runs/results/*/*"))


def test_gpus_that_are_not_there_are_told(folder):
    ran = cotrain(folder, "run", write(folder, document(cluster={"gpus_per_node": 1})), code=2, extra={"CUDA_VISIBLE_DEVICES": ""})
    ((place, fix),) = faults(ran.err)
    assert place == "cluster.gpus_per_node: asks for 1 GPUs, this machine shows 0"
    assert "CPU" in fix


def test_a_model_that_raises_in_a_rank_is_told_with_the_traceback_of_that_rank(folder):
    (folder / "mine.py").write_text(
        """
import os
from torch import nn

class Trunk(nn.Linear):
    def forward(self, *columns):
        if os.environ.get("RANK") == "1":
            raise ValueError("the second rank is broken")
        return super().forward(columns[0][:, None])

def make(inputs):
    return Trunk(1, 8)
"""
    )
    made = document(models={"trunk": {"kind": "mine:make"}}, cluster={"processes_per_node": 2}, compare={"independent": False})
    ran = cotrain(folder, "run", write(folder, made), code=1)
    assert "rank-1 failed first: the second rank is broken" in ran.err
    assert "mine.py" in ran.err and "ValueError: the second rank is broken" in ran.err
    assert ran.err.count("Traceback") == 1
    log = folder / ran.err.splitlines()[-1].removeprefix("the whole log is ")
    assert "the second rank is broken" in log.read_text()
    assert not list(folder.glob("runs/models/*"))


LIGHT = """
import sys
from pipelines.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "deepspeed", "torchmetrics", "sklearn", "matplotlib", *HEAVY}))
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [(["--help"], ["kfp", "pyarrow", "pydantic"]), (["check", "job.yaml"], ["kfp"]), (["compile", "-o", "out.yaml"], ["pyarrow"])],
    ids=["help", "check", "compile"],
)
def test_the_light_commands_stay_light(folder, arguments, heavy):
    write(folder, document())
    command = [sys.executable, "-c", LIGHT.replace("*HEAVY", ", ".join(map(repr, heavy))), *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1:] == ["heavy: []"], ran.stderr


def test_plan_says_what_would_be_done_and_then_what_is_found(folder):
    spec = write(folder, document(seeds=2, train={"batch": 32, "zero": 2, "accumulate": 2}, cluster={"processes_per_node": 2}))
    out = cotrain(folder, "plan", spec).out
    for part in (
        "table: 282 train, 52 valid, 66 test rows (prepared now",
        "trunk: mlp, 24 parameters",
        "head of side: 18 parameters",
        "head of size: 9 parameters",
        "in all 51 parameters",
        "30 steps of 32 rows a dataset, mixer all: side in 30, size in 30",
        "balancer equal: 2 backward passes a step",
        "2 on 1 node (cpu), fp32, 8 rows a micro-batch",
        "memory a rank with ZeRO 2",
        "joint, seed 1: to be trained",
        "size alone, seed 0: to be trained",
    ):
        assert part in out
    (config,) = [json.loads(line.partition("DeepSpeed: ")[2]) for line in out.splitlines() if "DeepSpeed: " in line]
    assert config["zero_optimization"]["stage"] == 2 and config["gradient_accumulation_steps"] == 2
    assert "found prepared" in cotrain(folder, "plan", spec).out


def test_doctor_says_what_is_there_and_fails_where_something_is_not(folder):
    good = cotrain(folder, "doctor").out
    assert [line.split()[:2] for line in good.splitlines()] == [
        ["ok", name] for name in ("python", "machine", "torch", "gpu", "deepspeed", "store", "kfp")
    ]
    bad = cotrain(folder, "doctor", "--kfp", "http://127.0.0.1:9", code=2).out
    assert "FAIL  kfp" in bad and "    fix: " in bad
