"""What was saved reads back; torn checkpoints are in tests/dist/test_resume.py."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from trainer.checkpoint import Checkpoints, Saved
from trainer.errors import StoreError
from trainer.parts import Store
from trainer.stores import open_store

PREFIX = "checkpoints/abc"


def saved(step: int = 3, phase: int = 0) -> Saved:
    return Saved(
        phase=phase, step=step, params={"w": torch.randn(3, 2), "scalar": torch.tensor(1.5), "n": torch.tensor(7)},
        optimizer={"exp_avg/w": torch.randn(3, 2)}, best={"w": torch.zeros(3, 2)},
        balancer={"log_var_T": torch.randn(2), "note": "x", "count": 3},
        values={"engine": {"optimizer_step": 3.0}, "early_stop": {"first": {"a": 0.1}, "best": 1 / 3, "waited": 2}, "nothing": None},
        history=[{"step": 1, "loss": {"a": 0.1, "b": None}}],
    )  # fmt: skip


def checkpoints(root: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(open_store(str(root)), PREFIX, keep)


def test_what_was_saved_reads_back(tmp_path: Path) -> None:
    one = saved()
    assert checkpoints(tmp_path).save(one) == f"{PREFIX}/000-000000003"
    name = checkpoints(tmp_path).latest()
    assert name == "000-000000003"
    found = checkpoints(tmp_path).read(name)
    for tensors in ("params", "optimizer", "best"):
        expected = getattr(one, tensors)
        assert getattr(found, tensors).keys() == expected.keys()
        assert all(torch.equal(getattr(found, tensors)[key], value) for key, value in expected.items())
    assert torch.equal(found.balancer.pop("log_var_T"), one.balancer.pop("log_var_T"))
    assert (found.balancer, found.values, found.history, found.phase, found.step) == (one.balancer, one.values, one.history, 0, 3)


def test_the_newest_is_that_of_the_last_phase_and_step(tmp_path: Path) -> None:
    all_kept = checkpoints(tmp_path, keep=9)
    for phase, step in ((0, 5), (0, 10), (0, 1000), (1, 0), (1, 2)):
        all_kept.save(saved(step, phase))
    assert all_kept.latest() == "001-000000002"


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        kept.save(saved(step))
    assert sorted(folder.name for folder in (tmp_path / PREFIX).iterdir()) == ["000-000000004", "000-000000005"]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).latest() is None
    one = checkpoints(tmp_path)
    one.save(saved())
    one.clear()
    assert one.latest() is None


def test_rubbish_is_swept_and_not_read(tmp_path: Path) -> None:
    (tmp_path / PREFIX / "000-000000009").mkdir(parents=True)
    (tmp_path / PREFIX / "000-000000009" / "model.safetensors").write_bytes(b"half")
    one = checkpoints(tmp_path)
    assert one.latest() is None
    one.save(saved(2))
    assert one.latest() == "000-000000002"
    assert [folder.name for folder in (tmp_path / PREFIX).iterdir()] == ["000-000000002"]


def test_a_store_out_of_reach_is_not_a_torn_checkpoint(tmp_path: Path) -> None:
    """Starting anew would lose what was trained."""
    one = checkpoints(tmp_path)
    one.save(saved())
    store: Store = one._store
    gone = StoreError.at("s3://there", "does not answer", "try later")
    with (
        mock.patch.object(store, "download", side_effect=gone),
        mock.patch.object(store, "read", side_effect=gone),
        pytest.raises(StoreError, match="does not answer"),
    ):
        one.latest()


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    one = checkpoints(tmp_path, keep=1)
    one.save(saved(1))
    full = StoreError.at("there", "is full", "free some space")
    with mock.patch.object(one._store, "upload", side_effect=full), pytest.raises(StoreError, match="is full"):
        one.save(saved(2))
    assert one.latest() == "000-000000001"


def own_bytes() -> int:
    """Memory that this process shares with nobody and can't give back."""
    (line,) = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Private_Dirty")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_ranks_of_a_machine_share_what_they_read(tmp_path: Path) -> None:
    """The file's own pages, and not a copy in each rank: eight of them go on where a checkpoint fits once."""
    size = 64 * 2**20
    checkpoints(tmp_path).save(Saved(step=1, params={"w": torch.ones(size // 4)}, optimizer={"exp_avg/w": torch.ones(size // 4)}))
    before = own_bytes()
    found = checkpoints(tmp_path).read("000-000000001")
    assert float(found.params["w"].sum() + found.optimizer["exp_avg/w"].sum()) == size / 2
    assert own_bytes() - before < size / 4
