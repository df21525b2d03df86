from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import StoreError
from trainer.shards import ShardWriter, Split, read_batch

FITTED = {
    "image": {"kind": "image", "shape": [1, 2, 3], "dtype": "uint8"},
    "label": {"kind": "category", "shape": [], "dtype": "int32"},
    "price": {"kind": "number", "shape": [], "dtype": "float32"},
}
ROW_BYTES = 6 + 4 + 4


def encoded(rows):
    rng = np.random.default_rng(rows)
    return {
        "image": rng.integers(0, 256, (rows, 1, 2, 3)).astype(np.uint8),
        "label": np.arange(rows, dtype=np.int32),
        "price": np.where(np.arange(rows) % 5, rng.normal(size=rows), np.nan).astype(np.float32),
    }


def written(folder, rows, shard_rows, batch=7):
    writer = ShardWriter(folder, "train", FITTED, shard_rows * ROW_BYTES)
    values = encoded(rows)
    for start in range(0, rows, batch):
        writer.add({name: array[start : start + batch] for name, array in values.items()})
    writer.close()
    (folder / "fitted.json").write_text(json.dumps(FITTED))
    return values, {"rows": {"train": rows}, "shards": {"train": writer.paths}}


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
@pytest.mark.parametrize("shard_rows", [1, 3, 7, 50, 1000])
def test_rows_come_back_in_the_order_they_are_asked_for(shard_rows, whole_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.shards._WHOLE_BYTES", whole_bytes)
    values, manifest = written(tmp_path, 50, shard_rows)
    split = Split(tmp_path, manifest, "train")
    assert len(split) == 50 and len(manifest["shards"]["train"]) == -(-50 // shard_rows)
    rng = np.random.default_rng(0)
    for rows in (
        rng.permutation(50),
        rng.integers(0, 50, 200),
        np.array([49]),
        np.array([0, 0, 49, 0]),
        np.arange(3, 6),
        np.zeros(0, np.int64),
    ):
        for name, array in values.items():
            found = split.gather(name, rows)
            np.testing.assert_array_equal(found, array[rows])
            assert found.dtype == array.dtype and found.flags.writeable


def test_a_shard_is_one_record_batch_of_about_the_size_that_was_asked_for(tmp_path):
    _, manifest = written(tmp_path, 1000, 300)
    for path, rows in zip(manifest["shards"]["train"], [300, 300, 300, 100], strict=True):
        with pa.ipc.open_file(str(tmp_path / path)) as file:
            assert file.num_record_batches == 1 and len(file.get_batch(0)) == rows
        assert (tmp_path / path).stat().st_size < 300 * ROW_BYTES + 2000


def test_columns_are_views_of_the_file_and_not_copies(tmp_path):
    _, manifest = written(tmp_path, 1000, 1000)
    before = pa.total_allocated_bytes()
    split = Split(tmp_path, manifest, "train")
    split.gather("image", np.array([5]))
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
@pytest.mark.parametrize("rows", [[50], [-51], [3, 99]])
def test_rows_that_are_not_there_are_an_error(rows, whole_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.shards._WHOLE_BYTES", whole_bytes)
    _, manifest = written(tmp_path, 50, 20)
    with pytest.raises(IndexError):
        Split(tmp_path, manifest, "train").gather("label", np.array(rows))


def test_more_shards_than_may_be_open_are_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.shards._OPEN", 3)
    monkeypatch.setattr("trainer.shards._WHOLE_BYTES", 0)
    opened = []
    monkeypatch.setattr("trainer.shards.read_batch", lambda path: opened.append(path) or read_batch(path))
    values, manifest = written(tmp_path, 50, 2)
    split = Split(tmp_path, manifest, "train")
    rows = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(split.gather("image", rows), values["image"][rows])
    np.testing.assert_array_equal(split.gather("image", rows[:2]), values["image"][rows[:2]])
    assert len(split._pieces["image"]) <= 3 and len(opened) > 25


def test_a_damaged_shard_is_told_with_its_path(tmp_path):
    _, manifest = written(tmp_path, 50, 100)
    shard = tmp_path / manifest["shards"]["train"][0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"train-00000.arrow: this shard can't be read"):
        Split(tmp_path, manifest, "train")
    shard.unlink()
    with pytest.raises(StoreError, match=r"train-00000.arrow: this shard is missing"):
        read_batch(shard)


def test_shards_of_another_split_size_are_refused(tmp_path):
    _, manifest = written(tmp_path, 50, 20)
    manifest["rows"]["train"] = 70
    with pytest.raises(StoreError, match="70 rows of train don't fit 3 shards"):
        Split(tmp_path, manifest, "train")
