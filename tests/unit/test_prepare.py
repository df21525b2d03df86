from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import catalog, results
from trainer.errors import DataError, StoreError
from trainer.prepare import prepare
from trainer.shards import Split

SPLITS = ["train", "valid", "test"]


def table(rows=400, start=0):
    rng = np.random.default_rng(7)
    noise = rng.normal(size=rows + start)
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "id": number,
            "words": [f"review {row} says {'good' if row % 3 else 'bad'}" for row in number],
            "stars": number % 5,
            "price": noise[start:],
        }
    )


def dataset(path, **more):
    columns = {
        "text": {"kind": "text", "source": "words", "vocab_size": 300, "max_tokens": 16},
        "stars": {"kind": "category", "classes": 5},
        "price": {"kind": "number"},
    }
    return catalog.parser("dataset")({"kind": "parquet", "uri": str(path), "key": "id", "columns": columns, **more})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(table(), path)
    return path


def made(source_dataset, root):
    result = prepare("reviews", source_dataset, str(root))
    return result, results.read_manifest(result.folder)


def raw_rows(result, manifest):
    return [row for batch in Split(result.folder, manifest, "raw-test").batches() for row in batch.to_pylist()]


def faults_of(source_dataset, root):
    with pytest.raises(DataError) as caught:
        prepare("reviews", source_dataset, str(root))
    left = [file for file in Path(root).rglob("*") if file.is_file()] if Path(root).exists() else []
    assert left == []
    return [str(fault) for fault in caught.value.faults]


def test_every_row_is_in_one_split_and_encoded_as_its_column_says(source, tmp_path):
    part = dataset(source)
    result, manifest = made(part, tmp_path / "runs")
    assert sum(manifest["rows"].values()) == 400 and min(manifest["rows"].values()) > 30
    fitted = result.json("fitted.json")
    raw = raw_rows(result, manifest)
    test = Split(result.folder, manifest, "test")
    assert len(raw) == len(test) == manifest["rows"]["test"]
    rows = np.arange(len(test))
    np.testing.assert_array_equal(test.gather("stars", rows), [row["stars"] for row in raw])
    np.testing.assert_array_equal(test.gather("price", rows), np.array([row["price"] for row in raw], np.float32))
    words = part.columns["text"].decode(test.gather("text", rows), fitted["text"])
    assert words == [row["words"][: len(text)] for row, text in zip(raw, words, strict=True)]
    results.verify(result.folder)
    assert not (result.folder / ".work").exists()


def test_the_same_source_gives_the_same_bytes_anywhere(source, tmp_path):
    first, one = made(dataset(source), tmp_path / "a")
    second, two = made(dataset(source), tmp_path / "b")
    assert first.key == second.key and one == two
    again, _ = made(dataset(source), tmp_path / "a")
    assert again.reused and not first.reused


def test_the_digest_is_of_the_rows_and_not_of_how_they_are_stored(source, tmp_path):
    _, one = made(dataset(source), tmp_path / "runs")
    other = tmp_path / "other.parquet"
    pq.write_table(table(), other, row_group_size=37, compression="gzip", use_dictionary=False)
    _, two = made(dataset(other, shard_bytes=4096), tmp_path / "runs")
    assert one["digest"] == two["digest"] and one["key"] != two["key"]
    assert len(two["shards"]["train"]) > 1


def test_a_changed_source_is_prepared_anew_even_with_the_same_size_and_time(source, tmp_path):
    first, _ = made(dataset(source), tmp_path / "runs")
    before = source.stat()
    changed = table().set_column(2, "stars", pa.array((np.arange(400) + 1) % 5))
    pq.write_table(changed, source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    second, _ = made(dataset(source), tmp_path / "runs")
    assert first.key != second.key and not second.reused


@pytest.mark.parametrize("key", ["id", None, ["id", "stars"]])
def test_new_rows_never_move_old_ones(key, tmp_path):
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    pq.write_table(table(400), old)
    pq.write_table(pa.concat_tables([table(200, start=400), table(400)]), new)
    before, after = ({row["words"] for row in raw_rows(*made(dataset(path, key=key), tmp_path / "runs"))} for path in (old, new))
    old_words = set(table(400)["words"].to_pylist())
    assert before and before == after & old_words


def test_a_larger_share_for_validation_leaves_the_test_rows_alone(source, tmp_path):
    few, many = (made(dataset(source, split={"valid": share}), tmp_path / "runs") for share in (0.1, 0.5))
    assert raw_rows(*few) == raw_rows(*many)
    assert few[1]["rows"]["valid"] < many[1]["rows"]["valid"]


def test_another_salt_draws_another_split(source, tmp_path):
    one, two = (made(dataset(source, split={"salt": salt}), tmp_path / "runs") for salt in ("", "x"))
    assert raw_rows(*one) != raw_rows(*two)


def test_shares_come_out_as_asked(tmp_path):
    path = tmp_path / "many.parquet"
    pq.write_table(table(5000), path)
    _, manifest = made(dataset(path, split={"valid": 0.3, "test": 0.2}), tmp_path / "runs")
    assert abs(manifest["rows"]["valid"] - 1500) < 150 and abs(manifest["rows"]["test"] - 1000) < 130


def test_rows_with_one_key_stay_together(tmp_path):
    path = tmp_path / "visits.parquet"
    whole = table(600)
    pq.write_table(whole.append_column("patient", pa.array(np.arange(600) // 6)), path)
    columns = {"stars": {"kind": "category"}, "patient": {"kind": "number"}}
    result, manifest = made(dataset(path, key="patient", columns=columns), tmp_path / "runs")
    held = [set(Split(result.folder, manifest, split).gather("patient", np.arange(manifest["rows"][split])).tolist()) for split in SPLITS]
    assert sum(map(len, held)) == len(set.union(*held)) == 100


def test_statistics_come_from_training_rows_alone(source, tmp_path):
    result, manifest = made(dataset(source), tmp_path / "one")
    fitted = result.json("fitted.json")
    train = Split(result.folder, manifest, "train").gather("price", np.arange(manifest["rows"]["train"])).astype(float)
    assert fitted["price"]["mean"] == pytest.approx(train.mean(), rel=1e-5)
    held_out = {
        row["words"] for split in ("raw-test",) for batch in Split(result.folder, manifest, split).batches() for row in batch.to_pylist()
    }
    rows = table().to_pylist()
    for row in rows:  # what is held out becomes wild: nothing that is learned may notice
        if row["words"] in held_out:
            row.update(words="zzqqj " * 20, price=1e6)
    wild = tmp_path / "wild.parquet"
    pq.write_table(pa.Table.from_pylist(rows), wild)
    again, _ = made(dataset(wild), tmp_path / "two")
    assert again.json("fitted.json") == fitted


def test_all_faults_are_told_at_once_with_rows_and_values(tmp_path):
    rows = table(50).to_pylist()
    rows[3]["stars"], rows[8]["stars"], rows[9]["stars"] = 9, -1, 9
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps(row) for row in rows]
    lines[20] = lines[20].replace('"price": ', '"price": "dear ')[:-1] + '"}'
    path.write_text("\n".join(lines[:20] + lines[21:] + [lines[20]]))
    columns = {"stars": {"kind": "category", "classes": 5}, "text": {"kind": "vector", "size": 2, "source": "words"}}
    assert faults_of(dataset(path, kind="jsonl", columns=columns), tmp_path / "runs") == [
        "data.reviews.stars: 3 of 50 values are none of the 5 classes (0, 1, 2, 3, 4): row 3: 9; row 8: -1; row 9: 9\n"
        "    fix: correct the rows, or add the label to `classes`",
        "data.reviews.text: 50 of 50 values are not lists of numbers but string: row 0: 'review 0 says bad'; row 1: 'review 1 says good'; "
        "row 2: 'review 2 says good'; row 3: 'review 3 says bad'; row 4: 'review 4 says good'; ...\n"
        "    fix: use a column of lists of numbers",
    ]


def test_rows_are_counted_through_batches(tmp_path):
    path = tmp_path / "bad.parquet"
    stars = np.zeros(30_000, int)
    stars[[100, 29_999]] = 7
    pq.write_table(pa.table({"stars": stars}), path)
    found = faults_of(dataset(path, key=None, columns={"stars": {"kind": "category", "classes": 2}}), tmp_path / "runs")
    assert found[0].startswith("data.reviews.stars: 2 of 30,000 values are none of the 2 classes (0, 1): row 100: 7; row 29999: 7\n")


def test_a_split_without_rows_is_a_fault_with_a_remedy(tmp_path):
    path = tmp_path / "few.parquet"
    pq.write_table(table(2), path)
    found = faults_of(dataset(path), tmp_path / "runs")
    assert found == [
        "data.reviews.split: no row falls to valid or test (train 2, valid 0, test 0)\n"
        "    fix: give more rows, other shares, another `salt`, or a `key` that tells more rows apart"
    ]
    pq.write_table(table(0), path)
    assert faults_of(dataset(path), tmp_path / "runs") == ["data.reviews: the source has no rows\n    fix: check where it points to"]


def test_no_validation_is_allowed_when_its_share_is_none(source, tmp_path):
    result, manifest = made(dataset(source, split={"valid": 0}), tmp_path / "runs")
    assert manifest["rows"]["valid"] == 0 and manifest["shards"]["valid"] == []
    empty = Split(result.folder, manifest, "valid")
    assert len(empty) == 0 and empty.gather("text", np.zeros(0, np.int64)).shape == (0, 16)


def test_a_column_without_training_values_is_a_fault(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(table().append_column("empty", pa.nulls(400, pa.float64())), path)
    found = faults_of(dataset(path, columns={"stars": {"kind": "category"}, "empty": {"kind": "number"}}), tmp_path / "runs")
    assert found == ["data.reviews.empty: has no value in the training rows\n    fix: fill the column, or take it out of the spec"]


def test_leaks_repeats_and_conflicting_labels_are_reported(tmp_path):
    rows = table(300).to_pylist()
    for row in range(300, 360):  # equal text under another key, so in any split; a third of them with another label
        rows.append({**rows[row - 300], "id": row, "stars": (rows[row - 300]["stars"] + (row % 3 == 0)) % 5})
    rows += [{"id": 400 + row, "words": None, "stars": 1, "price": 1.0} for row in range(5)]  # nothing in common but that
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    result, _ = made(dataset(path), tmp_path / "runs")
    whole = made(dataset(path, columns={"number": {"kind": "number", "source": "id"}}), tmp_path / "runs")[0].json("report.json")
    assert whole["duplicates"]["columns"] == ["number"] and whole["duplicates"]["groups"] == 0
    found = result.json("report.json")["duplicates"]
    assert (found["columns"], found["groups"], found["rows"]) == (["text"], 60, 60)
    across = sum(entry["rows"] for entry in found["across"].values())
    assert across + sum(found["within"].values()) == 60 and across > 5
    assert found["conflicts"]["groups"] == 20 and found["conflicts"]["rows"] == 40
    assert found["conflicts"]["examples"][0][0][0] == 0 and found["conflicts"]["examples"][0][1][0] == 300
    assert [group[0][0] for group in found["examples"]] == [0, 1, 2, 3, 4]


def test_equal_rows_share_a_split_when_the_key_is_what_they_share(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.concat_tables([table(300), table(300)]), path)
    report = made(dataset(path, key="words"), tmp_path / "runs")[0].json("report.json")
    assert report["duplicates"]["rows"] == 300
    assert all(entry["rows"] == 0 for entry in report["duplicates"]["across"].values())


def test_rows_that_lack_a_modality_are_reported(tmp_path):
    rows = [
        {"words": f"row {row}" if row % 10 else None, "shape": [float(row), 1.0] if row % 15 else None, "stars": row % 5}
        for row in range(300)
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    columns = {"text": {"kind": "text", "source": "words", "vocab_size": 300}, "shape": {"kind": "vector", "size": 2}, "stars": "category"}
    found = made(dataset(path, key=None, columns=columns), tmp_path / "runs")[0].json("report.json")["modalities"]
    assert found == {
        "columns": ["text", "shape"],
        "missing": {"text": {"rows": 30, "examples": [0, 10, 20, 30, 40]}, "shape": {"rows": 20, "examples": [0, 15, 30, 45, 60]}},
        "none": 10,
    }


def test_values_of_a_modality_with_several_partners_are_reported(tmp_path):
    rows = [{"words": f"row {row}", "shape": [float(row), 1.0], "stars": row % 5} for row in range(300)]
    rows[7]["words"] = "row 3"  # a text beside two shapes
    rows[20] = dict(rows[19], stars=0)  # a pair that is there twice is no mismatch
    rows[30]["words"] = None
    rows[31]["shape"] = [30.0, 1.0]  # what lacks its partner is none either
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    columns = {"text": {"kind": "text", "source": "words", "vocab_size": 300}, "shape": {"kind": "vector", "size": 2}, "stars": "category"}
    report = made(dataset(path, key=None, columns=columns), tmp_path / "runs")[0].json("report.json")
    assert report["pairs"]["text"]["groups"] == 1 and report["pairs"]["text"]["rows"] == 2
    assert [row for row, _ in report["pairs"]["text"]["examples"][0]] == [3, 7]
    assert report["pairs"]["shape"] == {"groups": 0, "rows": 0, "examples": []}
    assert report["duplicates"]["groups"] == 1 and report["modalities"]["missing"]["text"]["rows"] == 1


def test_missing_values_and_balance_are_counted_per_split(tmp_path):
    rows = table(400).to_pylist()
    for row in rows[::4]:
        row["stars"] = None
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    result, manifest = made(dataset(path), tmp_path / "runs")
    stars = result.json("report.json")["columns"]["stars"]["splits"]
    assert sum(stars[split]["missing"] for split in SPLITS) == 100
    for split in SPLITS:
        assert sum(stars[split]["balance"].values()) + stars[split]["missing"] == manifest["rows"][split]
        assert stars[split]["missing_share"] == stars[split]["missing"] / manifest["rows"][split]


def test_a_source_that_changes_while_it_is_read_is_refused(source, tmp_path, monkeypatch):
    part = dataset(source)
    versions = iter(["before", "after"])
    monkeypatch.setattr(type(part), "fingerprint", lambda self: next(versions))
    assert faults_of(part, tmp_path / "runs") == [
        "data.reviews: the source changed while it was read\n    fix: run again when nothing writes to it"
    ]


def test_a_full_disk_is_told_as_such(source, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.prepare.write_batch", full)
    with pytest.raises(StoreError, match="no space is left on this disk"):
        prepare("reviews", dataset(source), str(tmp_path / "runs"))
    assert not list((tmp_path / "runs").rglob("*.arrow"))
