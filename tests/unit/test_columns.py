from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow

from trainer.columns.category import Category
from trainer.columns.image import Image
from trainer.columns.number import Number
from trainer.columns.text import Text
from trainer.columns.vector import Vector


def fit(part, values):
    return part.finish(part.observe(values, {}))


def test_labels_are_sorted_as_numbers_when_they_are_numbers():
    part = Category()
    assert fit(part, pa.array([10, 9, 2]))["classes"] == [2, 9, 10]
    assert fit(part, pa.array(["10", "9"]))["classes"] == ["10", "9"]
    assert fit(part, pa.array([True, False]))["classes"] == [False, True]
    assert fit(part, pa.array([3.0, None, 1.0]))["classes"] == [1, 3]


def test_a_label_is_one_label_however_it_is_held():
    part = Category(classes=[1, 2])
    fitted = part.finish({})
    for values in (pa.array([2, 1]), pa.array(["2", "1"]), pa.array([2.0, 1.0]), pa.array(["2", "1"]).dictionary_encode()):
        assert part.checks(values) == []
        assert part.encode(values, fitted).tolist() == [1, 0]
    assert part.decode(np.array([1, 0, -1]), fitted) == [2, 1, None]


def test_labels_outside_the_classes_are_found_with_their_rows():
    part = Category(classes=3)
    assert part.findings(pa.array([0, 7, 1, 8])) == ["2 of 4 are none of the 3 classes (0, 1, 2): row 1 is 7"]
    assert part.findings(pa.array([0.5, 1.0])) == ["1 of 2 are fractions, not labels: row 0 is 0.5"]


def test_labels_that_training_rows_lack_are_missing_and_counted():
    part = Category()
    fitted = fit(part, pa.array(["a", "b"]))
    values = pa.array(["b", "z", None])
    encoded = part.encode(values, fitted)
    assert encoded.tolist() == [1, -1, -1]
    told = part.describe(part.tally(values, encoded, fitted, {}), fitted)
    assert told == {"balance": {"a": 0, "b": 1}, "unseen": 1, "unseen_labels": ["z"]}


def test_too_many_labels_are_no_category():
    with pytest.raises(ValueError, match="more than 100,000 different labels"):
        Category().observe(pa.array(np.arange(100_001)), {})


def test_numbers_are_read_from_text_and_what_is_none_is_found():
    part = Number(minimum=0, maximum=10)
    values = pa.array(["1", " 2.5 ", "+3e0", "", None, "nan", "four", "-1", "11", "inf"])
    assert part.findings(values) == [
        "1 of 10 are not numbers: row 6 is 'four'",
        "1 of 10 are infinite, or too large for float32: row 9 is 'inf'",
        "1 of 10 are below the minimum 0.0: row 7 is '-1'",
        "1 of 10 are above the maximum 10.0: row 8 is '11'",
    ]
    good = values[:6]
    np.testing.assert_array_equal(part.encode(good, fit(part, good)), np.array([1, 2.5, 3, np.nan, np.nan, np.nan], np.float32))


def test_numbers_are_standardised_with_the_fitted_moments():
    values = pa.array([1.0, 2.0, 3.0, None])
    fitted = fit(Number(), values)
    assert fitted["mean"] == 2.0 and fitted["std"] == pytest.approx((2 / 3) ** 0.5)
    tensor = Number().tensor(Number().encode(values, fitted), fitted)
    np.testing.assert_allclose(tensor[:3], [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)
    plain = Number(standardise=False)
    assert fit(plain, values)["mean"] == 0.0 and fit(plain, values)["std"] == 1.0


def test_a_constant_number_does_not_divide_by_zero():
    fitted = fit(Number(), pa.array([7.0, 7.0]))
    assert Number().tensor(np.array([7.0], np.float32), fitted).tolist() == [0.0]


def test_moments_survive_a_large_offset():
    values = pa.array(1e9 + np.array([0.0, 1.0, 2.0]))
    state = {}
    for row in range(3):
        state = Number().observe(values[row : row + 1], state)
    assert Number().finish(state)["std"] == pytest.approx((2 / 3) ** 0.5, rel=1e-6)


def test_vectors_of_another_length_are_found():
    found = Vector(size=2).findings(pa.array([[1.0, 2.0], [1.0], None, [1.0, float("inf")]]))
    assert found == [
        "1 of 4 are not lists of 2 numbers: row 1 is of length 1",
        "1 of 4 hold infinite values, or some too large for float32: row 3 is [1.0, inf]",
    ]


def test_a_gap_in_a_vector_becomes_the_mean():
    part = Vector(size=2)
    values = pa.array([[1.0, None], [3.0, 5.0]])
    fitted = fit(part, values)
    assert part.tensor(part.encode(values, fitted), fitted).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    state = part.tally(values, part.encode(values, fitted), fitted, {})
    assert part.describe(state, fitted)["partial"] == 1


@pytest.mark.parametrize("nested", [False, True, "rows"])
def test_images_may_be_flat_or_nested(nested):
    pixels = np.arange(6.0).reshape(1, 2, 3)
    value = {False: pixels.ravel(), True: pixels, "rows": pixels[0]}[nested].tolist()
    part = Image(shape=[1, 2, 3], range=[0, 5])
    values = pa.array([value, None])
    encoded = part.encode(values, fit(part, values))
    assert encoded[0].tolist() == (pixels * 51).astype(int).tolist() and not encoded[1].any()


def test_channels_last_are_not_taken_for_channels_first():
    image = np.zeros((2, 2, 3)).tolist()
    assert Image(shape=[3, 2, 2]).findings(pa.array([image]))[0].startswith("1 of 1 are not images of shape 3x2x2: row 0 is [[[0.0")


def test_pixels_outside_the_range_are_found():
    found = Image(shape=[1, 1, 2], range=[0, 1]).findings(pa.array([[0.0, 1.0], [0.5, 16.0], [float("nan"), 0.0]]))
    assert found == ["2 of 3 have values outside [0, 1]: row 1 is 0.5 to 16"]


def png(pixels, **options):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def test_image_files_are_read_checked_and_resized():
    grey, colour = np.full((4, 4), 128, np.uint8), np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 255
    deep = np.full((4, 4), 0x8080, np.uint16)
    part = Image(shape=[3, 4, 4])
    values = pa.array([png(colour), png(grey), png(deep), None])
    assert part.checks(values) == []
    encoded = part.encode(values, fit(part, values))
    assert encoded[0, 0].min() == 255 and not encoded[0, 1:].any() and (encoded[1] == 128).all() and (encoded[2] == 128).all()
    small = Image(shape=[1, 4, 4], size=[2, 2])
    held = pa.array([{"bytes": png(grey), "path": "a.png"}])  # as Hugging Face datasets hold images
    assert small.encode(held, fit(small, held)).tolist() == [[[[128, 128], [128, 128]]]]


def test_broken_image_files_are_found():
    whole = png(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8))
    found = Image(shape=[1, 8, 8]).findings(pa.array([whole, whole[: len(whole) // 2], b"text", png(np.zeros((2, 3), np.uint8))]))
    assert found[0].startswith("2 of 4 are not image files that can be read: row 1 is ")
    assert found[1] == "1 of 4 are image files of another size than 8x8: row 3 is 2x3"


def test_images_are_normalised_per_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 2, 3, 3))
    pixels[:, 1] //= 4
    part = Image(shape=[2, 3, 3])
    values = pa.array(pixels.reshape(50, -1).tolist())
    tensor = part.tensor(part.encode(values, fit(part, values)), fit(part, values))
    np.testing.assert_allclose(tensor.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(tensor.std((0, 2, 3), unbiased=False), 1, atol=1e-5)


def test_a_row_that_spells_the_padding_is_text():
    part = Text(vocab_size=300, max_tokens=8)
    values = pa.array(["<pad>", "  ", None])
    encoded = part.encode(values, fit(part, values))
    assert encoded[0, :5].all() and not encoded[1:].any()
    assert part.missing(values).tolist() == [False, True, True]


def test_text_is_cut_and_its_lengths_are_counted():
    part = Text(vocab_size=257, max_tokens=4)
    values = pa.array(["abcdef", "ab", None])
    fitted = fit(part, values)
    encoded = part.encode(values, fitted)
    assert (encoded != 0).sum(1).tolist() == [4, 2, 0]
    told = part.describe(part.tally(values, encoded, fitted, {}), fitted)
    assert told == {"tokens": {"min": 2, "q05": 2, "q50": 2, "q95": 4, "max": 4}, "full": 1}
    assert part.tensor(encoded[1:], fitted).shape == (2, 2)


def test_the_vocabulary_is_the_same_in_every_process():
    code = (
        "import hashlib, pyarrow as pa; from trainer.columns.text import Text; part = Text(vocab_size=400)\n"
        "words = [f'{a}{b} {b}{c}' for a in 'abcdefg' for b in ['ing', 'the', 'ers'] for c in 'xyz']\n"
        "print(hashlib.sha256(part.finish(part.observe(pa.array(words), {}))['tokenizer'].encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1


def test_the_sample_of_texts_is_bounded_and_does_not_depend_on_their_order(monkeypatch):
    monkeypatch.setattr("trainer.columns.text._SAMPLE_BYTES", 20_000)
    texts = [f"text number {row} of {row % 7}" for row in range(1000)]
    part = Text(vocab_size=300)
    fitted = []
    for order in (texts, texts[::-1]):
        state = {}
        for start in range(0, 1000, 50):
            state = part.observe(pa.array(order[start : start + 50]), state)
            assert state["bytes"] <= 2 * 20_000
        assert len(json.dumps(state)) < 40_000
        fitted.append(part.finish(state))
    assert fitted[0] == fitted[1]
