"""A run that was stopped, killed or torn goes on, and ends where it would have ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_cases import Garden, Ranks
from training_inputs import Trained, ask, copy_data, document, same_bits
from training_rank import train_job

from trainer.world import World

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]  # the process groups start in whichever test comes first

EVENTFUL = (
    [f"resume-fp32-{s}" for s in (0, 1, 2, 3)]
    + [f"resume-fp32-{s}-offload" for s in (1, 2, 3)]
    + ["resume-fp32-3-offload-both"]
    + [f"resume-bf16-{s}" for s in (1, 2, 3)]
)


@pytest.mark.parametrize("label", [*EVENTFUL, "normed", "boxes-0", "boxes-3"])
def test_a_run_stopped_by_a_signal_to_one_rank_ends_bit_for_bit_the_same(garden: Garden, two: Ranks, label: str) -> None:
    """Two phases of different tasks and optimisers, dropout, a balancer with a state, early stopping, micro-batches; stopped once in each.

    And a detector, whose gradients meet at a map.
    """
    said = two.said[f"{label} in two-stopped"]
    for ranks in said[:-1]:
        assert all("stopped at step" in rank["stopped"] for rank in ranks)
        assert len({rank["stopped"] for rank in ranks}) == 1
    whole, parts = garden.trained(label, "two"), garden.trained(label, "two-stopped")
    assert same_bits(parts.params, whole.params)
    for found, expected in zip(parts.history, whole.history, strict=True):
        assert found | {"seconds": 0} == expected | {"seconds": 0}
    for name in ("steps", "steps_planned", "task_steps", "samples"):
        assert parts.result[name] == whole.result[name]


def test_ranks_end_with_the_running_statistics_of_all(garden: Garden, two: Ranks) -> None:
    params = garden.trained("normed", "two").params
    assert not torch.equal(params["models.trunk.norm.running_mean"], torch.zeros(8))


@pytest.fixture
def alone(tmp_path: Path):
    """A run of one rank in this process, checkpointed at every step, and stopped after the fifth."""
    spec = document(
        models={"trunk": {"kind": "mlp", "hidden": [16, 7], "dropout": 0.2}},
        phases={"joint": {"steps": 9, "balancer": "uncertainty"}},
        train={"checkpoint": {"every_steps": 1, "every_minutes": None, "keep": 3}},
    )
    request = ask(spec, tmp_path / "asked")
    world = World(0, 1, 0, torch.device("cpu"))

    def train(where: str, **more: object) -> dict:
        root = tmp_path / where
        if not root.exists():
            copy_data(tmp_path / "asked", root)
        return train_job({"root": str(root), "key": request["key"], **more}, world)

    train("whole")
    train("cut", stop=["joint", 3])
    return (
        train,
        tmp_path / "cut" / "checkpoints" / request["key"],
        Trained(tmp_path / "whole", request["key"]),
        lambda: Trained(tmp_path / "cut", request["key"]),
    )


def tear_cut(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def tear_bits(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.unlink()
    file.write_bytes(data)


def tear_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:40])


def tear_odd_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def tear_missing_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def tear_missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("tear", [tear_cut, tear_bits, tear_manifest, tear_odd_manifest, tear_missing_file, tear_missing_manifest])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(alone, tear) -> None:
    train, checkpoints, whole, cut = alone
    names = sorted(folder.name for folder in checkpoints.iterdir())
    assert names == ["000-000000003", "000-000000004", "000-000000005"]
    tear(checkpoints / names[-1])
    steps = [step for _, step, _ in train("cut")["rows"]]
    assert steps == [4, 5, 6, 7, 8]
    assert same_bits(cut().params, whole.params)


def test_a_torn_checkpoint_does_not_crowd_out_whole_ones(alone) -> None:
    train, checkpoints, whole, cut = alone
    tear_bits(checkpoints / "000-000000005")
    shutil.copytree(checkpoints / "000-000000005", checkpoints / "000-000000099")
    train("cut", stop=["joint", 5])  # writes 5, 6 and 7
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["000-000000005", "000-000000006", "000-000000007"]
    assert [step for _, step, _ in train("cut")["rows"]] == [7, 8]
    assert same_bits(cut().params, whole.params)


def test_a_run_without_any_whole_checkpoint_starts_anew(alone) -> None:
    train, checkpoints, whole, cut = alone
    for folder in checkpoints.iterdir():
        tear_cut(folder)
    assert [step for _, step, _ in train("cut")["rows"]] == list(range(9))
    assert same_bits(cut().params, whole.params)


def test_checkpoints_hold_no_pickle_and_go_when_the_result_is_there(alone) -> None:
    train, checkpoints, _, _ = alone
    files = {file.name for file in checkpoints.rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in files} == {".safetensors", ".json", ".jsonl"}
    train("cut")
    assert not checkpoints.exists()


def test_a_stop_in_the_last_step_loses_nothing(alone) -> None:
    train, _, whole, cut = alone
    assert "step 9 of 9" in train("cut", stop=["joint", 7])["stopped"]
    assert train("cut")["rows"] == []
    assert same_bits(cut().params, whole.params)
    assert json.dumps(cut().result["steps"]) == '{"joint": 9}'
