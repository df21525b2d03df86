from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.duplicates import Duplicates
from trainer.rowhash import digests, uniform

EQUAL = {
    "whole and float": (pa.array([1, -2, None]), pa.array([1.0, -2.0, None])),
    "width": (pa.array([1, 0], pa.int8()), pa.array([1, 0], pa.uint64())),
    "zero": (pa.array([0.0]), pa.array([-0.0])),
    "boolean": (pa.array([True, False]), pa.array([1, 0])),
    "dictionary": (pa.array(["a", None, "b"]), pa.array(["a", None, "b"]).dictionary_encode()),
    "string size": (pa.array(["a", ""]), pa.array(["a", ""], pa.large_string())),
    "list size": (pa.array([[1.0, 2.0]]), pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))),
    "list of whole": (pa.array([[1, 2], [], None]), pa.array([[1.0, 2.0], [], None])),
    "list beside one with a gap": (pa.array([[1, 2], [None]])[:1], pa.array([[1, 2]])),
    "empty list": (pa.array([[]]), pa.array([[], [1.5]])[:1]),
    "nested": (pa.array([[[1, 2]], [[3, 4]]]), pa.array([[[1.0, 2.0]], [[3.0, 4.0]]])),
    "null of any type": (pa.nulls(1), pa.array([None], pa.string())),
}
DIFFERENT = {
    "number and text": (pa.array([1]), pa.array(["1"])),
    "null and zero": (pa.array([None], pa.int64()), pa.array([0])),
    "null and empty": (pa.array([None], pa.string()), pa.array([""])),
    "large neighbours": (pa.array([2**60]), pa.array([2**60 + 1])),
    "nesting": (pa.array([[[1], [2]]]), pa.array([[[1, 2]]])),
    "gap and zero": (pa.array([[None, 1.0]]), pa.array([[0.0, 1.0]])),
    "gaps": (pa.array([[None, 0.0]]), pa.array([[0.0, None]])),
    "lists of text": (pa.array([["ab", "c"]]), pa.array([["a", "bc"]])),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_values_have_equal_digests_however_they_are_held(case):
    one, two = EQUAL[case]
    np.testing.assert_array_equal(digests([one]), digests([two]))


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_values_have_different_digests(case):
    one, two = DIFFERENT[case]
    assert digests([one]).tolist() != digests([two]).tolist()


def test_columns_do_not_run_into_one_another():
    assert digests([pa.array(["ab"]), pa.array(["c"])]).tolist() != digests([pa.array(["a"]), pa.array(["bc"])]).tolist()


def test_digests_are_the_same_on_every_machine():
    found = digests([pa.array([1, None]), pa.array(["review", "ü"]), pa.array([[0.5], [1.0, 2.0]])], b"salt")
    assert [f"{a:016x}{b:016x}" for a, b in found.tolist()] == ["32d158d818dc2b041aec38e39db642a9", "b26a024d694c8f5b6a7eba5124327e69"]
    code = "import pyarrow as pa; from trainer.rowhash import digests; print(digests([pa.array(['a', 'b'])]).tolist())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in "12"
    }
    assert seen == {f"{digests([pa.array(['a', 'b'])]).tolist()}\n"}


_values = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8),
    st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=8),
    st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=8),
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)))), min_size=1, max_size=8),
    st.lists(st.one_of(st.none(), st.lists(st.lists(st.integers(0, 9)))), min_size=1, max_size=8),
)


@settings(deadline=None)
@given(values=_values, data=st.data())
def test_the_digest_of_a_row_depends_on_that_row_alone(values, data):
    array = pa.array(values)
    row = data.draw(st.integers(0, len(array) - 1))
    np.testing.assert_array_equal(digests([array])[row], digests([array[row : row + 1]])[0])
    alone = pa.array([values[row]])
    if alone.type == array.type:
        np.testing.assert_array_equal(digests([array])[row], digests([alone])[0])


def test_draws_are_uniform():
    drawn = uniform(digests([pa.array(range(20_000))], b"k"))
    assert drawn.min() >= 0 and drawn.max() < 1
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] - 2000).max() < 250


def test_equal_rows_are_found_across_batches_and_buckets(tmp_path):
    rng = np.random.default_rng(0)
    value = rng.integers(0, 400, 1000)
    split = rng.integers(0, 3, 1000).astype(np.uint8)
    label = (value % 7 + (rng.random(1000) < 0.1)).astype(np.uint64)
    hashed = digests([pa.array(value)])
    names = ["train", "valid", "test"]
    with Duplicates(tmp_path, names) as found:
        for start in range(0, 1000, 130):
            part = slice(start, start + 130)
            found.add(hashed[part], label[part], np.arange(1000)[part].astype(np.uint64), split[part])
        report = found.report()
    groups = {v: np.flatnonzero(value == v) for v in range(400)}
    groups = {v: rows for v, rows in groups.items() if len(rows) > 1}
    assert report["groups"] == len(groups) and report["rows"] == sum(len(rows) - 1 for rows in groups.values())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        leaks = sum((split[rows] == b).sum() for rows in groups.values() if (split[rows] == a).any())
        entry = report["across"][f"{names[a]}-{names[b]}"]
        assert entry["rows"] == leaks
        for (one, of_one), (two, of_two) in entry["examples"]:
            assert value[one] == value[two] and {of_one, of_two} == {names[a], names[b]} and names[split[one]] == of_one
    for number, name in enumerate(names):
        assert report["within"][name] == sum(max(0, (split[rows] == number).sum() - 1) for rows in groups.values())
    mixed = [rows for rows in groups.values() if len(set(label[rows])) > 1]
    assert report["conflicts"]["groups"] == len(mixed) and report["conflicts"]["rows"] == sum(map(len, mixed))
    assert [group[0][0] for group in report["examples"]] == sorted(rows[0] for rows in groups.values())[:5]
