"""What every kind of column promises."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import catalog

_finite = st.floats(-1e6, 1e6, width=32)
_share = st.floats(0, 1, width=32)
_corner = st.tuples(_share, _share).filter(lambda x: abs(x[0] - x[1]) > 1e-3).map(sorted)
_things = st.lists(
    st.tuples(_corner, _corner, st.sampled_from(["cat", "dog"])).map(
        lambda x: {"box": [20 * x[0][0], 10 * x[1][0], 20 * x[0][1], 10 * x[1][1]], "label": x[2]}
    ),
    max_size=3,
)
_pixels = st.lists(st.integers(0, 255), min_size=12, max_size=12)
CASES = {
    "boxes": ({"kind": "boxes", "classes": ["cat", "dog"], "size": [10, 20], "most": 3}, _things),
    "category": ({"kind": "category"}, st.text(max_size=8)),
    "number": ({"kind": "number"}, _finite),
    "vector": ({"kind": "vector", "size": 3}, st.lists(st.one_of(st.none(), _finite), min_size=3, max_size=3)),
    "image": ({"kind": "image", "shape": [3, 2, 2]}, _pixels),
    "text": ({"kind": "text", "vocab_size": 300, "max_tokens": 64}, st.text(st.characters(codec="utf-8"), max_size=12)),
}
TYPES = {
    "boxes": pa.list_(pa.struct({"box": pa.list_(pa.float64()), "label": pa.string()})),
    "category": pa.string(),
    "number": pa.float64(),
    "vector": pa.list_(pa.float64()),
    "image": pa.list_(pa.int64()),
    "text": pa.string(),
}


def column(kind):
    return catalog.parser("column")(CASES[kind][0])


def fit(part, values):
    return part.finish(part.observe(values, {}))


def usable(part, values):
    return not part.missing(values).all()


def rows_of(kind):
    return st.lists(st.one_of(st.none(), CASES[kind][1]), min_size=1, max_size=12).map(lambda rows: pa.array(rows, TYPES[kind]))


def test_every_kind_of_the_catalogue_is_tested_here():
    assert set(CASES) == set(catalog.CATALOG["column"])


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_encoded_rows_have_the_shape_and_type_that_the_fitted_state_says(kind, data):
    part, values = column(kind), data.draw(rows_of(kind))
    if usable(part, values):
        fitted = fit(part, values)
        encoded = part.encode(values, fitted)
        assert part.checks(values) == []
        assert encoded.shape == (len(values), *fitted["shape"]) and encoded.dtype == fitted["dtype"]
        assert part.tensor(encoded, fitted).shape[0] == len(values)
        assert json.loads(json.dumps(fitted)) == fitted


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_summary_does_not_depend_on_how_rows_are_cut_into_batches(kind, data):
    part, values = column(kind), data.draw(rows_of(kind))
    if usable(part, values):
        state = {}
        cut = data.draw(st.integers(0, len(values)))
        for batch in (values[:cut], values[cut:]):
            state = part.observe(batch, state)
        whole, cut_up = fit(part, values), part.finish(json.loads(json.dumps(state)))
        for name in whole:
            if name in ("mean", "std"):
                np.testing.assert_allclose(cut_up[name], whole[name], rtol=1e-6, atol=1e-6)
            else:
                assert cut_up[name] == whole[name]


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_row_is_encoded_alone_as_among_others(kind, data):
    part, values = column(kind), data.draw(rows_of(kind))
    if usable(part, values):
        fitted = fit(part, values)
        row = data.draw(st.integers(0, len(values) - 1))
        np.testing.assert_array_equal(part.encode(values[row : row + 1], fitted), part.encode(values, fitted)[row : row + 1])


@pytest.mark.parametrize("kind", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_decoded_is_what_was_encoded(kind, data):
    part, values = column(kind), data.draw(rows_of(kind))
    if not usable(part, values):
        return
    fitted = fit(part, values)
    there = np.flatnonzero(~part.missing(values))
    encoded = part.encode(values, fitted)
    seen = encoded if kind == "text" else part.tensor(encoded, fitted).numpy()
    decoded = part.decode(seen, fitted)
    for row in there.tolist():
        raw, back = values[row].as_py(), decoded[row]
        if kind == "category":
            assert back == raw
        elif kind == "text":
            import unicodedata

            assert back == unicodedata.normalize("NFC", raw)
        elif kind == "number":
            assert back == pytest.approx(raw, rel=1e-5, abs=1e-5 * (1 + fitted["std"] + abs(fitted["mean"])))
        elif kind == "boxes":
            assert [thing["label"] for thing in back] == [thing["label"] for thing in raw]
            for thing, wanted in zip(back, raw, strict=True):
                np.testing.assert_allclose(thing["box"], wanted["box"], atol=1e-5)
        elif kind == "image":
            np.testing.assert_allclose(np.ravel(back), raw, atol=1e-3 * 255)
        else:
            wanted = np.where(np.array(raw, float) != np.array(raw, float), fitted["mean"], np.array(raw, float))
            np.testing.assert_allclose(
                back, wanted, rtol=1e-4, atol=1e-4 * (1 + np.abs(fitted["std"]).max() + np.abs(fitted["mean"]).max())
            )


@pytest.mark.parametrize("kind", CASES)
def test_missing_values_get_the_code_of_their_kind(kind):
    part = column(kind)
    thing = {"box": [1.0, 2.0, 3.0, 4.0], "label": "cat"}
    good = {"boxes": [thing], "category": "a", "number": 2.0, "vector": [1.0, 2.0, 3.0], "image": [9] * 12, "text": "hello"}[kind]
    values = pa.array([good, None], TYPES[kind])
    fitted = fit(part, values)
    encoded = part.encode(values, fitted)[1]
    assert part.missing(values).tolist() == [False, True]
    if kind == "category":
        assert encoded == -1
    elif kind in ("boxes", "number", "vector"):
        assert np.isnan(encoded).all()
    else:
        assert not encoded.any()


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(
    "odd", [[b"x"], ["x y"], [[["x"]]], [{"a": 1}], [1.5], [[1.0, 2.0]], [None], [True], [float("inf")], [[]], [2**62]], ids=repr
)
def test_values_of_any_type_are_found_or_taken_but_never_raise(kind, odd):
    part, values = column(kind), pa.array(odd)
    findings = part.checks(values)
    assert len(part.findings(values)) == len(findings)
    assert all(len(finding.rows) for finding in findings)
    if not findings and usable(part, values):
        part.encode(values, fit(part, values))


@pytest.mark.parametrize("kind", CASES)
def test_nothing_to_learn_from_is_a_value_error(kind):
    part = column(kind)
    with pytest.raises(ValueError, match="in the training rows"):
        part.finish(part.observe(pa.array([None, None], TYPES[kind]), {}))
    with pytest.raises(ValueError, match="in the training rows"):
        part.finish({})
