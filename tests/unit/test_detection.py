"""A document with detection, from its check to boxes for raw rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from trainer.check import load_spec
from trainer.columns.boxes import Boxes
from trainer.datasets.digit_scenes import DigitScenes
from trainer.errors import SpecError
from trainer.evaluate import evaluate_task, read_predictions
from trainer.joint import build
from trainer.predict import load
from trainer.prepare import prepare
from trainer.results import write_manifest
from trainer.shards import Split
from trainer.spec import JointSpec

SEEN = {"data": "pages", "model": "eye", "input": "image"}
EYE = {"model": "eye", "input": "image"}
NAMES = ["image", "boxes", "count", "largest", "writing"]


def document(**changes: Any) -> dict[str, Any]:
    return {
        "name": "pages",
        "data": {"pages": {"kind": "digit_scenes", "scenes": 60, "writings": 12}},
        "models": {"eye": {"kind": "conv_map", "channels": [8, 8, 16], "groups": 4}},
        "tasks": {
            "things": {**SEEN, "target": "boxes", "objective": {"kind": "detection", "width": 8, "most": 6, "least_score": 0.0}},
            "largest": {**SEEN, "target": "largest"},
        },
        "phases": {"joint": {"steps": 1}},
        "compare": {"resamples": 100},
    } | changes


@pytest.fixture(scope="module")
def pages() -> pa.RecordBatch:
    (batch,) = DigitScenes(scenes=60, writings=12).batches(NAMES)
    return batch


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_boxes_are_the_ink_and_nothing_but_the_ink_is_on_a_page(pages: pa.RecordBatch) -> None:
    for picture, things in zip(pages["image"].to_pylist(), pages["boxes"].to_pylist(), strict=True):
        left = np.array(picture).reshape(48, 48)
        for thing in things:
            x0, y0, x1, y1 = map(int, thing["box"])
            ink = left[y0:y1, x0:x1] > 0
            assert ink.any(0)[[0, -1]].all() and ink.any(1)[[0, -1]].all()  # no box could be smaller
            left[y0:y1, x0:x1] = 0
        assert not left.any()


def test_scenes_say_how_many_digits_and_which_is_largest(pages: pa.RecordBatch) -> None:
    for row in pages.to_pylist():
        heights = [(thing["box"][3] - thing["box"][1], thing["label"]) for thing in row["boxes"]]
        assert row["count"] == len(heights)
        assert (max(heights)[0], row["largest"]) in heights or max(heights)[0] - dict(map(reversed, heights))[row["largest"]] <= 1
    assert set(pages["count"].to_pylist()) == {1, 2, 3, 4}


def test_scenes_come_from_the_seed_and_their_number_alone(pages: pa.RecordBatch) -> None:
    (fewer,) = DigitScenes(scenes=20, writings=12).batches(NAMES)
    assert fewer.equals(pages.slice(0, 20))
    (other,) = DigitScenes(scenes=20, writings=12, seed=1).batches(NAMES)
    assert not any(a == b for a, b in zip(other["image"].to_pylist(), fewer["image"].to_pylist(), strict=True))


def test_no_handwriting_is_in_two_splits(tmp_path: Path, pages: pa.RecordBatch) -> None:
    made = prepare("pages", DigitScenes(scenes=60, writings=12), str(tmp_path))
    fitted = json.loads((made.folder / "fitted.json").read_text())
    report = json.loads((made.folder / "report.json").read_text())
    writings = pages["writing"].to_pylist()
    pixels = {np.array(picture, np.uint8).tobytes(): writing for picture, writing in zip(pages["image"].to_pylist(), writings, strict=True)}
    found = {}
    for name in ("train", "valid", "test"):
        split = Split(made.folder, made.json("manifest.json"), name)
        found[name] = {pixels[image.tobytes()] for image in split.gather("image", np.arange(len(split)))}
    assert not found["train"] & found["test"] and not found["train"] & found["valid"] and not found["valid"] & found["test"]
    assert fitted["boxes"]["shape"] == [4, 5]
    told = report["columns"]["boxes"]["splits"]["train"]
    assert told["boxes"]["boxes"] == sum(told["balance"].values()) > told["boxes"]["most"]


# --- boxes as a column ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("things", "problem"),
    [
        ([{"box": [0, 0, 5, 5], "label": "cow"}], "label that is none of"),
        ([{"box": [0, 0, 5, 5], "label": None}], "label that is none of"),
        ([{"box": [5, 0, 5, 5], "label": "cat"}], "box that is not"),
        ([{"box": [0, 0, 25, 5], "label": "cat"}], "box that is not"),
        ([{"box": [0, 0, 5], "label": "cat"}], "box that is not"),
        ([{"box": None, "label": "cat"}], "box that is not"),
        ([{"box": [0, 0, float("nan"), 5], "label": "cat"}], "box that is not"),
        ([{"box": [0, 0, 1, 1], "label": "cat"}] * 3, "more than 2 boxes"),
    ],
)
def test_wrong_boxes_are_found_with_their_row(things: list[Any], problem: str) -> None:
    column = Boxes(classes=["cat"], size=[10, 20], most=2)
    kind = pa.list_(pa.struct({"box": pa.list_(pa.float64()), "label": pa.string()}))
    values = pa.array([[{"box": [0, 0, 20, 10], "label": "cat"}], None, things, []], kind)
    (finding,) = column.checks(values)
    assert problem in finding.problem and finding.rows.tolist() == [2]


def test_a_picture_that_shows_nothing_is_not_one_that_nobody_looked_at() -> None:
    column = Boxes(classes=["cat"], size=[10, 20], most=2)
    kind = pa.list_(pa.struct({"box": pa.list_(pa.float64()), "label": pa.string()}))
    encoded = column.encode(pa.array([[], None], kind), {})
    assert (encoded[0, :, 4] == -1).all() and np.isnan(encoded[1]).all()
    assert column.decode(encoded, column.expected()) == [[], None]


# --- documents -----------------------------------------------------------------------------------------------------


def test_detection_is_judged_by_mean_average_precision_unless_told_otherwise() -> None:
    spec = load_spec(document())
    assert [metric.kind for metric in spec.tasks["things"].metrics or []] == ["map", "map_50"]
    assert spec.judged_as("things") == "boxes"


@pytest.mark.parametrize(
    ("changes", "place", "finding"),
    [
        ({"models": {"eye": {"kind": "conv"}}}, "tasks.things.model", "needs a map, and model 'eye' (conv) makes vectors"),
        ({"models": {"eye": {"kind": "conv_map", "channels": [8], "stride": 4}}}, "models.eye", "reach stride 4"),
        ({"tasks": {"things": {**SEEN, "target": "largest", "objective": "detection"}}}, "tasks.things.objective", "a category"),
        ({"tasks": {"things": {**SEEN, "target": "boxes"}}}, "tasks.things.target", "kind boxes"),
        ({"tasks": {"largest": {**SEEN, "target": "largest", "metrics": ["map"]}}}, "tasks.largest.metrics", "map"),
        (
            {"tasks": {"alike": {"data": "pages", "objective": {"kind": "info_nce", "left": EYE, "right": EYE}}}},
            "tasks.alike.objective",
            "needs vectors, and model 'eye' (conv_map) makes maps",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], place: str, finding: str) -> None:
    with pytest.raises(SpecError) as error:
        load_spec(document(**changes))
    assert any(place in fault.place and finding in fault.finding for fault in error.value.faults), str(error.value)


# --- trained -------------------------------------------------------------------------------------------------------


def saved(folder: Path, spec: JointSpec, data: Path, seed: int) -> Path:
    """A folder of `results/train`: a model that took some steps."""
    folder.mkdir(parents=True)
    fitted = {"pages": json.loads((data / "fitted.json").read_text())}
    module = build(spec, fitted, seed=seed)
    split, columns = Split(data, json.loads((data / "manifest.json").read_text()), "train"), spec.data["pages"].columns
    every = np.arange(len(split))
    batch = {name: columns[name].tensor(split.gather(name, every), known) for name, known in fitted["pages"].items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        (module(["things"], {"pages": (batch, batch)}).sum() / len(every)).backward()
        optimizer.step()
    save_file(module.state_dict(), folder / "model.safetensors")
    manifest = json.loads((data / "manifest.json").read_text())
    result = {
        "key": f"k{seed}", "name": spec.name, "role": "joint", "task": None, "seed": seed, "spec": spec.to_json(), "fitted": fitted,
        "data": {"pages": {"key": manifest["key"], "digest": manifest["digest"]}}, "tasks": list(spec.tasks), "ranks": 1, "device": "cpu",
        "parameters": 1, "flops_per_row": 1, "seconds": {},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    write_manifest(folder, "train", f"k{seed}")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JointSpec, Path, Path, Path]:
    root = tmp_path_factory.mktemp("pages")
    spec = load_spec(document())
    data = prepare("pages", spec.data["pages"], str(root)).folder
    return spec, root, data, saved(root / "model", spec, data, 0)


def test_raw_rows_become_lists_of_boxes_in_pixels(trained: tuple[JointSpec, Path, Path, Path], pages: pa.RecordBatch) -> None:
    predictor = load(str(trained[3]))
    rows = [{"image": image} for image in pages["image"].to_pylist()[:5]]
    said = predictor.predict(rows)
    for row in said:
        things = row["things"]["value"]
        assert 1 <= len(things) <= 6
        assert [thing["score"] for thing in things] == sorted((thing["score"] for thing in things), reverse=True)
        for thing in things:
            left, top, right, bottom = thing["box"]
            assert 0 <= left <= right <= 48 and 0 <= top <= bottom <= 48 and thing["label"] in range(10)
    assert json.dumps(said)
    for alone, among in zip(predictor.predict(rows[3:4])[0]["things"]["value"], said[3]["things"]["value"], strict=True):
        assert alone["label"] == among["label"] and alone["score"] == pytest.approx(among["score"], abs=1e-5)
        assert alone["box"] == pytest.approx(among["box"], abs=1e-3)


def test_scores_have_intervals_and_the_champion_is_judged_on_the_same_boxes(trained: tuple[JointSpec, Path, Path, Path]) -> None:
    spec, root, data, model = trained
    champion = load(str(model))
    scores = evaluate_task("things", spec, [model], [saved(root / "other", spec, data, 1)], data, str(root), ("v1", champion))
    found = scores.json("scores.json")
    assert found["target"] == "boxes" and found["rows"] > 5 and found["champion_status"] == "scored"
    mine, theirs = (found["models"][role][0]["metrics"]["map_50"] for role in ("joint", "champion"))
    assert mine == theirs
    assert mine["low"] <= mine["value"] <= mine["high"] and mine["low"] < mine["high"]
    score, target = read_predictions(scores.folder / found["models"]["joint"][0]["predictions"])
    assert score.shape == (found["rows"], 6, 6) and target.shape == (found["rows"], 4, 5)
    assert spec.tasks["things"].metrics is not None
    assert spec.tasks["things"].metrics[1].compute(score, target, 0) == pytest.approx(mine["value"])


def test_a_champion_that_knows_other_classes_is_not_compared(trained: tuple[JointSpec, Path, Path, Path]) -> None:
    spec, root, data, model = trained
    champion = load(str(model))
    champion.fitted["pages"]["boxes"]["classes"].reverse()  # type: ignore[index]
    found = evaluate_task("things", spec, [model], [], data, str(root), ("v2", champion)).json("scores.json")
    assert found["champion_status"] == "unfit" and "classes" in found["champion_note"]


def test_other_heads_stand_on_the_mean_and_the_maximum_of_the_map(trained: tuple[JointSpec, Path, Path, Path]) -> None:
    spec, _, data, _ = trained
    module = build(spec, {"pages": json.loads((data / "fitted.json").read_text())})
    z_BCHW = torch.randn(3, 16, 5, 4)
    pooled = torch.cat([z_BCHW.mean((2, 3)), z_BCHW.amax((2, 3))], 1)
    linear = module.heads["largest"][1]  # type: ignore[index]
    torch.testing.assert_close(module.heads["largest"](z_BCHW), linear(pooled))
