"""A trained model predicts from raw rows what its module says, and says what is wrong with rows."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_inputs import COLOURS, rows_of_digits, rows_of_shop, trained
from safetensors.torch import load_file, save_file

import trainer
from trainer.errors import DataError, LaunchError, StoreError
from trainer.joint import build
from trainer.predict import Predictor, load
from trainer.results import write_manifest

SHOP = [*rows_of_shop(300)]
DIGITS = [*rows_of_digits(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("predict") / "result")


@pytest.fixture(scope="module")
def model(folder) -> Predictor:
    return trainer.load(str(folder))


def faults(attempt) -> list[str]:
    with pytest.raises(DataError) as caught:
        attempt()
    return [str(fault) for fault in caught.value.faults]


def expected(model: Predictor, folder, data: str, rows, task: str) -> torch.Tensor:
    """The head's output computed by hand, all rows in one batch."""
    fitted = json.loads((folder / "result.json").read_text())["fitted"][data]
    module = build(model.spec, {**model.fitted, data: fitted})
    module.load_state_dict(load_file(folder / "model.safetensors"))
    columns, inputs = model.spec.data[data].columns, {}
    for name in model.spec.tasks[task].inputs:
        part = columns[name]
        inputs[name] = part.tensor(part.encode(pa.array([row[part.source or name] for row in rows]), fitted[name]), fitted[name])
    with torch.no_grad():
        return module.eval().outputs([task], inputs)[task]


def test_importing_trainer_imports_no_torch():
    code = "import sys, trainer; trainer.load; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_five_lines_predict_every_task_in_the_units_of_the_source(model, folder):
    predictions = model.predict(SHOP, tasks=["colour", "price", "mood"])
    assert len(predictions) == 300 and list(predictions[0]) == ["colour", "price", "mood"]
    for task in ("colour", "mood"):
        wanted = expected(model, folder, "shop", SHOP, task).softmax(-1)
        classes = model.classes(task)
        assert sorted(classes) == sorted(COLOURS)
        found = torch.tensor([[row[task]["probabilities"][colour] for colour in classes] for row in predictions])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        assert [row[task]["value"] for row in predictions] == [classes[k] for k in found.argmax(1)]
    fitted = model.fitted["shop"]["price"]
    wanted = expected(model, folder, "shop", SHOP, "price")[:, 0] * fitted["std"] + fitted["mean"]
    torch.testing.assert_close(torch.tensor([row["price"]["value"] for row in predictions]), wanted, atol=1e-2, rtol=1e-4)
    assert np.std([row["price"]["value"] for row in predictions]) > 1


def test_classes_keep_their_type(model):
    found = model.predict(DIGITS[:1])[0]
    assert type(found["digit"]["value"]) is int and set(found["digit"]["probabilities"]) == set(range(10))
    assert type(found["even"]["value"]) is bool and set(found["even"]["probabilities"]) == {False, True}
    json.dumps(found)


def test_a_row_is_predicted_the_same_alone_as_among_others(model):
    together = model.predict(SHOP)
    for i in (0, 255, 256, 299):
        alone = model.predict([SHOP[i]])[0]
        assert list(alone) == list(together[i])
        assert alone["price"]["value"] == pytest.approx(together[i]["price"]["value"], rel=1e-5)
        assert alone["mood"]["probabilities"] == pytest.approx(together[i]["mood"]["probabilities"], abs=1e-6)


def test_rows_may_hold_arrays_and_go_by_either_name_of_a_column(model):
    plain = SHOP[:3]
    other = [{**row, "picture": np.array(row["picture"]), "sizes": torch.tensor(row["sizes"], dtype=torch.float64),
              "shop": np.int64(row["shop"]), "text": row["review text"]} for row in plain]  # fmt: skip
    for row in other:
        del row["review text"]
    assert model.predict(other) == model.predict(plain)


def test_tasks_whose_inputs_are_in_no_row_are_left_out_unless_asked_for(model):
    assert list(model.predict([{"strokes": [0.0, 1.0]}])[0]) == ["digit", "even"]
    assert list(model.predict([{"review text": "a small model"}])[0]) == ["mood"]
    assert list(model.predict([{**SHOP[0], **DIGITS[0]}])[0]) == model.tasks
    assert list(model.predict([{**SHOP[0], **DIGITS[0]}], ["even", "mood"])[0]) == ["even", "mood"]
    said = faults(lambda: model.predict([{"strokes": [0.0, 1.0]}, {}], ["mood"]))
    assert len(said) == 2 and said[0].startswith("row 0: has no column 'review text'")
    said = faults(lambda: model.predict([{"stroke": [0.0, 1.0]}]))
    assert "have columns stroke, which no task can use" in said[0] and "digit needs strokes" in said[0]


def test_no_rows_give_no_predictions(model):
    assert model.predict([]) == [] and model.predict([], ["digit"]) == []
    assert model.scores("digit", []).shape == (0, 10) and model.scores("price", []).shape == (0,)


def test_a_null_is_a_missing_value_as_in_training(model):
    (found,) = model.predict([dict.fromkeys(model.columns(["colour", "mood"]))])
    assert sum(found["mood"]["probabilities"].values()) == pytest.approx(1)


def test_every_fault_of_every_row_is_named_at_once(model):
    rows = [dict(row) for row in SHOP[:260]]
    rows[1]["picture"] = [[1, 2], [3, 4]]
    rows[2]["sizes"] = [1.0, 2.0]
    rows[3]["sizes"] = "wide"
    rows[4]["shop"] = 7
    rows[5]["review text"] = 5
    del rows[6]["shop"]
    rows[258]["picture"] = np.full((1, 4, 4), 99)
    rows[259]["sizes"] = [1.0, object(), 2.0]
    said = faults(lambda: model.predict(rows))
    assert [fault.partition(": ")[0] for fault in sorted(said, key=lambda text: int(text.split()[1].partition(".")[0].rstrip(":")))] == [
        "row 1.picture", "row 2.sizes", "row 3.sizes", "row 4.shop", "row 5.review text", "row 6", "row 258.picture", "row 259.sizes",
    ]  # fmt: skip
    assert all("fix: " in fault for fault in said)
    assert any("'wide'" in fault for fault in said) and any("shape 1x4x4" in fault for fault in said)


def test_faults_without_end_are_counted(model):
    said = faults(lambda: model.predict([{"strokes": [1.0]}] * 250))
    assert len(said) == 101 and "150 more faults" in said[-1]


@pytest.mark.parametrize("rows", [["text"], [None], [SHOP[0], 3]])
def test_rows_that_are_no_mappings_are_named(model, rows):
    assert "not columns by name" in faults(lambda: model.predict(rows))[0]


def test_an_unknown_task_is_named_with_the_nearest(model):
    assert "did you mean 'price'" in faults(lambda: model.predict(SHOP, ["prize"]))[0]
    assert "did you mean 'price'" in faults(lambda: model.scores("prize", []))[0]


def batches(rows, columns, size):
    return [pa.RecordBatch.from_pylist([{c: row[c] for c in columns} for row in rows[i : i + size]]) for i in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [7, 300])
def test_scores_of_raw_batches_equal_the_predictions(model, size):
    raw = batches(SHOP, ["picture", "sizes", "shop", "review text"], size)
    predictions = model.predict(SHOP)
    scores = model.scores("mood", iter(raw))
    assert scores.dtype == np.float32 and scores.shape == (300, 3)
    wanted = [[row["mood"]["probabilities"][colour] for colour in model.classes("mood")] for row in predictions]
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    np.testing.assert_allclose(model.scores("price", raw), [row["price"]["value"] for row in predictions], rtol=1e-5)


def test_faults_in_raw_batches_say_the_row_of_the_whole(model):
    raw = batches([{"strokes": [0.0, 1.0]}] * 270 + [{"strokes": [0.0]}], ["strokes"], 271)
    assert faults(lambda: model.scores("digit", [*raw[:0], *raw]))[0].startswith("row 270.strokes")
    assert "there is no column 'strokes'" in faults(lambda: model.scores("digit", [pa.record_batch({"stroke": [1]})]))[0]


def test_a_model_of_one_task_needs_only_its_own_columns(tmp_path):
    model = load(str(trained(tmp_path / "one", tasks=["even"])))
    assert model.tasks == ["even"] and model.columns() == ["strokes"]
    assert list(model.predict(DIGITS[:2])[1]) == ["even"]


def test_a_prediction_that_is_not_finite_is_none(tmp_path):
    folder = trained(tmp_path / "diverged")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * math.nan for name, tensor in weights.items()}, folder / "model.safetensors")
    write_manifest(folder, "train", "key-0")
    found = load(str(folder)).predict([SHOP[0]])[0]
    assert found["price"] == {"value": None} and found["colour"]["value"] is None
    json.dumps(found, allow_nan=False)


def change(file, text):
    def harm(folder):
        (folder / file).write_text(text)
        write_manifest(folder, "train", "key-0")

    return harm


def weights_of_another(folder):
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    write_manifest(folder, "train", "key-0")


def flip_a_byte(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


HARM = {
    "flipped byte": (flip_a_byte, "differs from its SHA-256"),
    "weights gone": (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "holds neither a published model nor a training result"),
    "manifest of nothing": (lambda folder: (folder / "manifest.json").write_text("{}"), "holds no model"),
    "manifest no json": (lambda folder: (folder / "manifest.json").write_text("x"), "holds no model"),
    "result no json": (change("result.json", "x"), "holds no model"),
    "result empty": (change("result.json", "{}"), "holds no model"),
    "other document": (change("result.json", '{"spec": {"name": "x"}, "fitted": {}, "name": "x", "tasks": []}'), "not one of this version"),
    "other weights": (weights_of_another, "weights don't fit its document"),
    "weights no safetensors": (change("model.safetensors", "pickle"), "weights don't fit its document"),
    "folder gone": (shutil.rmtree, "holds neither"),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_no_whole_model_is_refused_with_its_place(tmp_path, folder, harm):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    do, says = HARM[harm]
    do(copy)
    with pytest.raises(StoreError, match=says) as caught:
        load(str(copy))
    assert str(copy) in str(caught.value) and "fix: " in str(caught.value)


def test_code_that_is_not_here_and_devices_that_are_not_here_are_named(tmp_path, folder):
    with pytest.raises(LaunchError, match="device 'nonsense'"):
        load(str(folder), device="nonsense")
    text = (folder / "result.json").read_text().replace("model_inputs:mean_of_embeddings", "not_installed:mean_of_embeddings")
    shutil.copytree(folder, tmp_path / "copy")
    change("result.json", text)(tmp_path / "copy")
    with pytest.raises(LaunchError, match="not_installed"):
        load(str(tmp_path / "copy"))
