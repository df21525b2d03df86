"""`cotrain plan`: what it derives is what DeepSpeed takes and what training then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import document, write_csv

from pipelines.planned import _bytes, lines
from trainer.check import load_spec

PARAMETERS = 3 * 1000 + 1001 * 1000 + 1001 * 3
"""Of two hidden layers of 1000 on two numbers, with heads for two classes and for a number."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    write_csv(folder / "table.csv")
    return folder


def planned(folder: Path, **changes: Any) -> list[str]:
    made = document(**changes)
    made["data"]["table"]["uri"] = str(folder / "table.csv")
    return list(lines(load_spec(made), str(folder / "runs")))


def config(said: list[str]) -> dict[str, Any]:
    (found,) = [line.partition("DeepSpeed: ")[2] for line in said if "DeepSpeed: " in line]
    return json.loads(found)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_takes_the_derived_configuration(folder, stage, precision, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import deepspeed.comm
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.setattr(deepspeed.comm, "get_rank", lambda: 0)  # or it takes the world for one rank
    ours = config(
        planned(folder, train={"batch": 32, "accumulate": 2, "zero": stage, "precision": precision}, cluster={"processes_per_node": 2})
    )

    class Ranks:
        def get_data_parallel_world_size(self) -> int:
            return 2

    theirs = DeepSpeedConfig(ours, mpu=Ranks())
    assert theirs.zero_optimization_stage == max(stage, 1 if precision == "bf16" else 0)
    assert (theirs.train_micro_batch_size_per_gpu, theirs.gradient_accumulation_steps, theirs.train_batch_size) == (8, 2, 32)
    assert theirs.gradient_clipping == 1.0
    assert theirs.bfloat16_config.enabled == (precision == "bf16")


def test_memory_falls_with_the_stage(folder):
    def size(stage: int) -> float:
        said = planned(
            folder, models={"trunk": {"kind": "mlp", "hidden": [1000, 1000]}}, train={"zero": stage}, cluster={"processes_per_node": 4}
        )
        (line,) = [line for line in said if f"memory a rank with ZeRO {stage}" in line]
        value, unit = line.partition("not counted: ")[2].split()[:2]
        return float(value) * {"KiB": 2**10, "MiB": 2**20}[unit]

    sizes = [size(stage) for stage in range(4)]
    # 4 ranks: float32 parameters, gradients and two states of AdamW; from stage 1 on a master copy
    exact = [16, 8 + 12 / 4, 4 + 16 / 4, 20 / 4]
    assert sizes == pytest.approx([PARAMETERS * each for each in exact], rel=2e-3)


def test_one_rank_in_float32_needs_no_deepspeed(folder):
    assert any("DeepSpeed: not needed" in line for line in planned(folder))


def test_every_run_is_named_with_whether_it_is_there(folder):
    said = [line.strip().partition(":")[0] for line in planned(folder, seeds=2) if "to be trained" in line]
    assert said == [
        "joint, seed 0",
        "joint, seed 1",
        "side alone, seed 0",
        "side alone, seed 1",
        "size alone, seed 0",
        "size alone, seed 1",
    ]
    alone = [line for line in planned(folder, compare={"independent": False}) if "to be trained" in line]
    assert len(alone) == 1


def test_a_model_whose_cost_can_not_be_told_is_planned_all_the_same(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "costly.py").write_text(
        "from torch import nn\n\nclass M(nn.Linear):\n    def forward(self, a, b):\n        assert a.sum().item() == a.sum().item()\n"
        "        return super().forward(a[:, None])\n\ndef make(inputs):\n    return M(1, 4)\n"
    )
    assert any("an unknown number of FLOPs" in line for line in planned(folder, models={"trunk": {"kind": "costly:make"}}))


def test_sizes_are_given_in_units_of_1024():
    assert [_bytes(n) for n in (3, 1536, 5 * 2**20, 2**31, 2**41)] == ["3 B", "1.5 KiB", "5 MiB", "2 GiB", "2 TiB"]
