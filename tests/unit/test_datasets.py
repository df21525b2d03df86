from __future__ import annotations

import gzip
import json
import os
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import catalog
from trainer.datasets import files
from trainer.errors import DataError
from trainer.prepare import prepare
from trainer.stores import open_store

ROWS = [{"words": f"row {row}, said", "stars": row % 3, "price": row / 2 if row % 4 else None} for row in range(60)]
COLUMNS = {"stars": {"kind": "category"}, "price": {"kind": "number"}, "text": {"kind": "text", "source": "words", "vocab_size": 300}}


def dataset(kind, **more):
    return catalog.parser("dataset")({"kind": kind, "columns": COLUMNS, **more})


def csv_text(rows):
    field = lambda value: "" if value is None else f'"{value}"' if isinstance(value, str) else str(value)  # noqa: E731
    return "".join(",".join(map(field, line)) + "\n" for line in [ROWS[0].keys(), *[row.values() for row in rows]]).replace(
        '"words"', "words"
    )


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = csv_text(rows) if ".csv" in path.name else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def rows_of(part, names=("words", "stars", "price")):
    rows = pa.Table.from_batches(
        [pa.record_batch([batch[n].cast(pa.string()) for n in names], names) for batch in part.batches(names)]
    ).to_pylist()
    return [{name: float(value) if name != "words" and value is not None else value for name, value in row.items()} for row in rows]


def faults_of(part):
    with pytest.raises(DataError) as caught:
        list(part.batches(["words", "stars", "price"]))
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl", "rows.csv.gz", "rows.jsonl.gz"])
def test_the_same_rows_come_out_of_every_kind_of_file(name, tmp_path):
    path = write(tmp_path / name)
    kind = name.split(".")[1]
    assert rows_of(dataset(kind, uri=str(path))) == ROWS
    assert rows_of(dataset(kind, uri=f"file://{path}")) == ROWS
    assert dataset(kind, uri=str(path)).faults("data.x") == []


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_folder_is_read_in_the_order_of_its_names(kind, tmp_path):
    write(tmp_path / f"b.{kind}", ROWS[20:40])
    write(tmp_path / f"a/z.{kind}", ROWS[:20])
    write(tmp_path / f"c.{kind}", ROWS[40:])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / f".hidden.{kind}").write_text("no")
    (tmp_path / "README.md").write_text("about")
    part = dataset(kind, uri=str(tmp_path))
    assert rows_of(part) == ROWS
    before = part.fingerprint()
    assert before == part.fingerprint()
    (tmp_path / f"c.{kind}").rename(tmp_path / f"d.{kind}")
    assert part.fingerprint() != before


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_files_on_s3_are_read_and_their_changes_seen(kind, tmp_path, s3_bucket):
    bucket = s3_bucket()
    for name, rows in (("one", ROWS[:30]), ("two", ROWS[30:])):
        open_store(f"{bucket}/lake/reviews").write(f"{name}.{kind}", write(tmp_path / f"{name}.{kind}", rows).read_bytes())
    whole = dataset(kind, uri=f"{bucket}/lake/reviews/")
    assert rows_of(whole) == rows_of(dataset(kind, uri=f"{bucket}/lake/reviews")) == ROWS
    assert rows_of(dataset(kind, uri=f"{bucket}/lake/reviews/two.{kind}")) == ROWS[30:]
    before = whole.fingerprint()
    open_store(bucket).write(f"lake/reviews/two.{kind}", (tmp_path / f"one.{kind}").read_bytes())
    assert whole.fingerprint() != before
    assert whole.faults("data.x") == []
    with pytest.raises(DataError, match="holds no file that ends in"):
        list(dataset(kind, uri=f"{bucket}/elsewhere").batches(["words"]))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_what_is_wrong_with_a_document_is_seen_without_reading_rows(kind, tmp_path):
    path = write(tmp_path / f"rows.{kind}")
    columns = {"star": {"kind": "category"}, "text": {"kind": "text", "source": "word"}}
    found = [str(fault) for fault in dataset(kind, uri=str(path), columns=columns, key=["stars", "id"]).faults("x.yaml: data.reviews")]
    assert found == [
        "x.yaml: data.reviews.columns.star: the source has no column 'star'\n    fix: did you mean 'stars'? known: price, stars, words",
        "x.yaml: data.reviews.columns.text.source: the source has no column 'word'\n    fix: did you mean 'words'? known: price, stars, words",
        "x.yaml: data.reviews.key: the source has no column 'id'\n    fix: known: price, stars, words",
    ]
    missing = dataset(kind, uri=str(tmp_path / "gone")).faults("x.yaml: data.reviews")
    assert [str(fault) for fault in missing] == [
        f"x.yaml: data.reviews.uri: {tmp_path / 'gone'}: there is no such file or folder\n"
        "    fix: correct the path, which is relative to the current folder"
    ]


def test_a_cut_parquet_file_is_told(tmp_path):
    path = write(tmp_path / "rows.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert faults_of(dataset("parquet", uri=str(path)))[0].startswith(f"{path}: can't be read: Parquet magic bytes not found in footer.")
    assert "can't be read" in str(dataset("parquet", uri=str(path)).faults("data.x")[0])


def test_a_parquet_file_damaged_inside_is_told(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="zstd", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    whole[10:200] = b"\xff" * 190
    path.write_bytes(whole)
    assert "can't be read: " in faults_of(dataset("parquet", uri=str(path)))[0]


def test_bad_lines_of_csv_are_told_with_their_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('words,stars,price\n"over\ntwo lines",1,2\ntoo few,1\nfine,1,2\n"a",1,2,3\n')
    assert faults_of(dataset("csv", uri=str(path))) == [
        f"{path}:4: has 2 fields where the header has 3\n    fix: correct these lines",
        f"{path}:6: has 4 fields where the header has 3\n    fix: correct these lines",
    ]
    path.write_text("words,stars,price\n" + "a,b\n" * 9)
    assert (
        faults_of(dataset("csv", uri=str(path)))[-1]
        == f"{path}: has 4 more lines with a wrong number of fields\n    fix: correct these lines"
    )


def test_a_cut_csv_file_is_told(tmp_path):
    path = write(tmp_path / "rows.csv")
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("said") + 2])
    told = [f"{path}:61: opens a quote that is never closed\n    fix: correct these lines"]
    assert faults_of(dataset("csv", uri=str(path))) == told
    packed = write(tmp_path / "rows.csv.gz")
    packed.write_bytes(packed.read_bytes()[:-40])
    assert "can't be read" in faults_of(dataset("csv", uri=str(packed)))[0]


def test_a_lone_quote_inside_a_field_of_csv_is_a_character(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('words,stars,price\na 5" pipe,1,2\n')
    assert rows_of(dataset("csv", uri=str(path))) == [{"words": 'a 5" pipe', "stars": 1, "price": 2}]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"words,words,stars,price\n", "names the column 'words' twice in its header"),
        (b"words,stars,price\na,1,2\n\xff\xfe,1,2\n", ".csv:3: is not UTF-8\n    fix: save the file as UTF-8"),
        (b"words,stars,price\n" + b"x" * (3 << 20) + b",1,2\n", "has a row of more than 1 MiB"),
        (b"words,stars\na,1\n", "has no column 'price'"),
    ],
)
def test_csv_files_that_are_no_tables_are_told(data, told, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    assert told in faults_of(dataset("csv", uri=str(path)))[0]


def test_bad_lines_of_jsonl_are_told_with_their_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[3], lines[7], lines[8] = lines[3][:-4], "[1, 2]", ""
    path.write_text("\n".join(lines)[:-9])
    found = faults_of(dataset("jsonl", uri=str(path)))
    assert [line.split("\n")[0] for line in found] == [
        f"{path}:4: is no JSON: Expecting value: column 46",
        f"{path}:8: is list, not an object",
        f"{path}:60: is no JSON: Unterminated string starting at: column 39",
    ]


def test_a_column_of_two_types_is_told_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [dict(row) for row in ROWS]
    rows[41]["stars"] = "four"
    rows[50]["price"] = 2**70
    write(path, rows)
    assert faults_of(dataset("jsonl", uri=str(path))) == [
        f"{path}:42: 'stars' is 'four', of another type than in the lines before\n    fix: give the column one type",
        f"{path}:51: 'price' is {2**70}, too large for 64 bits\n    fix: give the column one type",
    ]


def test_a_key_that_no_line_of_jsonl_has_is_told(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"has no 'word' in any line\n.*did you mean 'words'"):
        list(dataset("jsonl", uri=str(path)).batches(["word"]))
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert [batch.to_pylist() for batch in dataset("jsonl", uri=str(path)).batches(["a", "b"])] == [
        [{"a": 1, "b": None}, {"a": None, "b": 2}]
    ]


def test_a_bad_line_reaches_the_user_with_everything_else_and_nothing_is_made(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [dict(row) for row in ROWS]
    rows[5]["price"] = -3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{oops\n")
    part = dataset("jsonl", uri=str(path), columns={"price": {"kind": "number", "minimum": 0}})
    with pytest.raises(DataError) as caught:
        prepare("reviews", part, str(tmp_path / "runs"))
    assert [fault.place for fault in caught.value.faults] == ["data.reviews", "data.reviews.price"]
    assert caught.value.faults[0].finding.startswith(f"{path}:61: is no JSON")
    assert not [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]


def test_a_file_is_hashed_once_and_again_when_it_changed_behind_its_time(tmp_path, monkeypatch):
    path = tmp_path / "rows.bin"
    path.write_bytes(b"one")
    old = path.stat().st_mtime_ns - 10**12
    os.utime(path, ns=(old, old))
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime + 60)
    first = files.digest_of(path)
    with monkeypatch.context() as patch:
        patch.setattr(files.hashlib, "file_digest", None)  # a second look does not read the file
        assert files.digest_of(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(old, old))
    assert files.digest_of(path) != first


MODULE = """
import pyarrow as pa

def dicts(n=60, wrong=False):
    for row in range(n):
        yield {"words": f"row {row}, said", "stars": row % 3, "price": row / 2 if row % 4 else None}
    if wrong:
        raise KeyError("colour")

def batches():
    rows = list(dicts())
    yield pa.RecordBatch.from_pylist(rows[:20])
    yield from rows[20:]

def numbers():
    yield 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    yield tmp_path / "own_rows.py"
    sys.modules.pop("own_rows", None)


def test_a_function_yields_rows_or_batches(module, tmp_path):
    assert rows_of(dataset("own_rows:dicts")) == rows_of(dataset("own_rows:batches")) == ROWS
    assert len(rows_of(dataset("own_rows:dicts", args={"n": 2000}))) == 2000
    assert prepare("x", dataset("own_rows:dicts"), str(tmp_path / "runs")).reused is False


def test_a_function_is_run_again_when_its_module_or_what_it_reads_changes(module, tmp_path):
    source = tmp_path / "behind.txt"
    source.write_text("1")
    part = dataset("own_rows:dicts", uri=str(source))
    seen = {part.fingerprint(), part.fingerprint()}
    source.write_text("2")
    seen.add(part.fingerprint())
    module.write_text(MODULE + "\n# changed\n")
    seen.add(part.fingerprint())
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("kind", "args", "told"),
    [
        ("own_rows:dicts", {"wrong": True}, "own_rows:dicts: raised KeyError: 'colour'"),
        ("own_rows:dicts", {"m": 1}, "own_rows:dicts: raised TypeError: dicts() got an unexpected keyword argument 'm'"),
        ("own_rows:numbers", {}, "own_rows:numbers: yields int"),
    ],
)
def test_what_a_function_does_wrong_is_told_without_its_traceback(kind, args, told, module):
    assert faults_of(dataset(kind, args=args))[0].startswith(told)


def test_a_function_that_is_not_there_is_told(module):
    with pytest.raises(DataError, match="own_rows:gone: can't be loaded: module 'own_rows' has no attribute 'gone'"):
        dataset("own_rows:gone").fingerprint()
    with pytest.raises(DataError, match="own_cols:gone: can't be loaded: No module named 'own_cols'"):
        dataset("own_cols:gone").fingerprint()


def test_digits_are_prepared_with_their_columns(tmp_path):
    part = catalog.parser("dataset")("digits")
    result = prepare("digits", part, str(tmp_path / "runs"))
    fitted = result.json("fitted.json")
    assert sum(result.json("manifest.json")["rows"].values()) == 1797
    assert fitted["image"]["shape"] == [1, 8, 8] and fitted["digit"]["classes"] == list(range(10))
    assert fitted["parity"]["classes"] == ["even", "odd"] and 15 < fitted["ink"]["mean"] < 25
    batch = next(iter(part.batches(["digit", "parity", "ink", "image"])))
    assert all((row["parity"] == "odd") == (row["digit"] % 2 == 1) for row in batch.slice(0, 50).to_pylist())
    np.testing.assert_allclose(batch["ink"][0].as_py(), sum(batch["image"][0].as_py()) / 16)


@pytest.mark.parametrize("name", ["reviews", "mnist"])
def test_data_that_was_not_fetched_is_told_with_the_command(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COTRAIN_DATA", str(tmp_path))
    part = catalog.parser("dataset")(name)
    told = f"there is no file {tmp_path / name}.parquet\n    fix: run: cotrain data {name}"
    assert [str(fault) for fault in part.faults("data.x")] == [f"data.x: {told}"]
    with pytest.raises(DataError) as caught:
        prepare("x", part, str(tmp_path / "runs"))
    assert told in str(caught.value)


@pytest.mark.parametrize(("name", "rows"), [("reviews", 23_486), ("mnist", 10_000)])
def test_fetched_data_is_whole(name, rows):
    if not (files.data_folder() / f"{name}.parquet").is_file():
        pytest.skip(f"needs data from the network: run `cotrain data {name}`")
    part = catalog.parser("dataset")(name)
    assert part.faults("data.x") == []
    names = [column.source or key for key, column in part.columns.items()]
    batches = list(part.batches(names))
    assert sum(map(len, batches)) == rows
    for key, column in part.columns.items():
        assert [column.findings(batch[column.source or key]) for batch in batches] == [[]] * len(batches)
