"""Every model of a task is scored on the same test rows, in the units of the source, and what can't be scored is said."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics as reference
import torch
from safetensors.torch import load_file, save_file

import trainer
from tests.score_inputs import CLASSES, document, prepared, raw_rows, trained
from trainer import evaluate
from trainer.errors import CotrainError, DataError
from trainer.evaluate import evaluate_task, read_predictions
from trainer.joint import build

ROWS = 600


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared rows, two joint seeds and an independent run of each task."""
    root = tmp_path_factory.mktemp("evaluate")
    spec = document()
    data = prepared(root / "data", spec, raw_rows(ROWS))
    return SimpleNamespace(
        root=str(root), spec=spec, data=data,
        joint=[trained(root / f"joint-{seed}", spec, data, seed=seed) for seed in (0, 1)],
        alone={task: [trained(root / f"alone-{task}", spec, data, [task], role="independent")] for task in spec.tasks},
    )  # fmt: skip


def run(place, task, champion=None, **changes):
    asked = {"spec": place.spec, "joint": place.joint, "independent": place.alone[task], "data": place.data, **changes}
    return evaluate_task(task, root=place.root, champion=champion, **asked)


def strict(result):
    """scores.json, refusing what is not JSON."""
    return json.loads((result.folder / "scores.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def in_one_batch(place, folder, task):
    """What the model says of all test rows, without the code under test."""
    result = json.loads((folder / "result.json").read_text())
    module = build(place.spec, result["fitted"], result["tasks"]).eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    rows, fitted, column = raw_rows(ROWS), result["fitted"]["animals"], place.spec.data["animals"].columns["x"]
    with torch.no_grad():
        return module.outputs([task], {"x": column.tensor(column.encode(rows["x"], fitted["x"]), fitted["x"])})[task], fitted


def test_classes_are_scored_as_scikit_learn_scores_the_same_model(place):
    scores = strict(run(place, "animal"))
    logits, _ = in_one_batch(place, place.joint[0], "animal")
    truth = raw_rows(ROWS)["animal"].to_pylist()
    there = np.array([label is not None for label in truth])
    target = np.array([CLASSES.index(label) for label in truth if label is not None])
    probability = logits.softmax(1).numpy()[there]
    found = {name: entry["value"] for name, entry in scores["models"]["joint"][0]["metrics"].items()}
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(target, probability.argmax(1)))
    assert found["f1_macro"] == pytest.approx(reference.f1_score(target, probability.argmax(1), average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(target, probability, multi_class="ovr"), abs=1e-5)
    assert scores["models"]["joint"][0]["confusion"] == reference.confusion_matrix(target, probability.argmax(1)).tolist()
    assert found["accuracy"] > 0.6  # it has learnt something
    assert (scores["rows"], scores["rows_without_target"]) == (there.sum(), ROWS - there.sum())
    assert scores["classes"] == CLASSES
    assert scores["primary"] == "accuracy"


def test_numbers_are_scored_in_the_units_of_the_source(place):
    scores = strict(run(place, "weight"))
    output, fitted = in_one_batch(place, place.joint[0], "weight")
    truth = raw_rows(ROWS)["weight"].to_numpy(zero_copy_only=False)
    there = ~np.isnan(truth)
    predicted = output[:, 0].numpy() * fitted["weight"]["std"] + fitted["weight"]["mean"]
    found = scores["models"]["joint"][0]["metrics"]
    assert found["mae"]["value"] == pytest.approx(np.abs(predicted - truth)[there].mean(), rel=1e-4)
    assert found["r2"]["value"] == pytest.approx(reference.r2_score(truth[there], predicted[there]), abs=1e-4)
    assert found["mae"]["value"] > 100
    assert scores["higher_is_better"] == {"mae": False, "r2": True}
    assert scores["models"]["joint"][0]["confusion"] is None


@pytest.mark.parametrize("task", ["animal", "weight"])
def test_predictions_of_all_models_pair_up_row_by_row(place, task):
    result = run(place, task)
    scores = strict(result)
    assert [entry["predictions"] for entry in scores["models"]["joint"]] == ["predictions-joint-0.arrow", "predictions-joint-1.arrow"]
    assert [entry["train_key"] for entry in scores["models"]["independent"]] == [f"independent-{task}-0-60"]
    read = [read_predictions(result.folder / entry["predictions"]) for role in ("joint", "independent") for entry in scores["models"][role]]
    for score, target in read:
        assert torch.equal(target, read[0][1])
        assert len(score) == scores["rows"] < ROWS
    assert not torch.equal(read[0][0], read[1][0])
    truth = [value for value in raw_rows(ROWS)[task].to_pylist() if value is not None]
    expected = [CLASSES.index(value) for value in truth] if task == "animal" else truth
    torch.testing.assert_close(read[0][1].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("task", ["animal", "weight"])
def test_every_interval_holds_its_value(place, task):
    for entries in strict(run(place, task))["models"].values():
        for entry in entries:
            for metric in entry["metrics"].values():
                assert metric["low"] < metric["value"] < metric["high"]


@pytest.mark.parametrize(("target", "other"), [("animal", "weight"), ("weight", "animal")])
def test_what_reads_several_modalities_is_judged_without_each_of_them_as_rows_that_lack_it_are(place, tmp_path, target, other):
    fused = {"kind": "fused", "encoders": {"x": "trunk", other: "scales"}, "drop": 0.3}
    spec = document(
        models={"scales": {"kind": "mlp", "hidden": [8]}},
        tasks={
            "guess": {"data": "animals", "objective": fused, "target": target, "metrics": place.spec.to_json()["tasks"][target]["metrics"]}
        },
    )
    folders = [trained(tmp_path / f"joint-{seed}", spec, place.data, ["guess"], seed=seed) for seed in (0, 1)]
    scores = strict(evaluate_task("guess", spec, folders, [], place.data, str(tmp_path)))
    rows, truth = raw_rows(ROWS), raw_rows(ROWS)[target].to_pylist()
    there = np.array([value is not None for value in truth])
    for folder, entry in zip(folders, scores["models"]["joint"], strict=True):
        assert list(entry["without"]) == ["x", other]
        for column, found in entry["without"].items():
            lacking = rows.set_column(rows.schema.get_field_index(column), column, pa.nulls(ROWS, rows.schema.field(column).type))
            said = trainer.load(str(folder)).scores("guess", [lacking])[there]
            if target == "animal":
                right = reference.accuracy_score([CLASSES.index(value) for value in truth if value is not None], said.argmax(1))
                assert found["accuracy"] == pytest.approx(right)
            else:
                right = reference.mean_absolute_error([value for value in truth if value is not None], said)
                assert found["mae"] == pytest.approx(right, rel=1e-4)
            assert found.keys() == entry["metrics"].keys()
        whole, blind = entry["metrics"][scores["primary"]]["value"], entry["without"]["x"][scores["primary"]]
        assert blind < whole - 0.2 if target == "animal" else blind > 2 * whole  # nearly all that is known stands in x


def test_what_can_not_do_without_a_column_is_judged_on_whole_rows_only(place):
    scores = strict(run(place, "animal", champion=("v7", champion_of(place, right(CLASSES)))))
    assert [entry["without"] for entries in scores["models"].values() for entry in entries] == [{}] * 4


def test_the_size_of_batches_does_not_matter(place, tmp_path, monkeypatch):
    before, _ = read_predictions(run(place, "animal").folder / "predictions-joint-0.arrow")
    monkeypatch.setattr(evaluate, "BATCH", 7)
    found = evaluate_task("animal", place.spec, place.joint, [], place.data, str(tmp_path))
    score, _ = read_predictions(found.folder / "predictions-joint-0.arrow")
    torch.testing.assert_close(score, before)


def test_the_same_question_is_answered_once(place, tmp_path):
    asked = {"spec": place.spec, "joint": place.joint, "independent": [], "data": place.data, "root": str(tmp_path)}
    first = evaluate_task("weight", **asked)
    assert not first.reused
    assert evaluate_task("weight", **asked).reused
    for changes in (
        {"joint": place.joint[:1]},
        {"independent": place.alone["weight"]},
        {"spec": document(compare={"resamples": 300})},
        {"spec": document(compare={"confidence": 0.9})},
        {"spec": document(tasks={"weight": {"metrics": ["mae"]}})},
        {"champion": ("v1", champion_of(place))},
    ):
        assert evaluate_task("weight", **{**asked, **changes}).key != first.key
    # what does not change a score does not change the key
    assert evaluate_task("weight", **{**asked, "spec": document(compare={"gate": {"worst_drop": 0.1}}, seeds=2)}).reused


def test_a_model_of_other_data_or_of_other_tasks_is_refused(place, tmp_path):
    other = prepared(tmp_path / "other", place.spec, raw_rows(20), digest="data-2")
    with pytest.raises(CotrainError, match="was trained on data data-1, not on data-2"):
        run(place, "animal", data=other)
    with pytest.raises(CotrainError, match="was trained on weight, not on animal"):
        run(place, "animal", independent=place.alone["weight"])


def test_one_class_in_the_test_rows_leaves_undefined_metrics_empty(place, tmp_path):
    rows = raw_rows(200, missing=0)
    rows = rows.set_column(1, "animal", pa.array(["bee"] * 200))
    data = prepared(tmp_path / "data", place.spec, rows)
    scores = strict(evaluate_task("animal", place.spec, place.joint, [], data, str(tmp_path)))
    found = scores["models"]["joint"][0]["metrics"]
    assert found["auroc"] == {"value": None, "low": None, "high": None}
    assert 0 <= found["accuracy"]["low"] <= found["accuracy"]["high"] <= 1
    assert [sum(row) for row in scores["models"]["joint"][0]["confusion"]] == [0, 200, 0]


@pytest.mark.parametrize("task", ["animal", "weight"])
@pytest.mark.parametrize("rows", [0, 30])
def test_no_target_in_the_test_rows_leaves_every_metric_empty(place, tmp_path, task, rows):
    data = prepared(tmp_path / "data", place.spec, raw_rows(rows, missing=1.1))
    result = evaluate_task(task, place.spec, place.joint, [], data, str(tmp_path))
    scores = strict(result)
    assert (scores["rows"], scores["rows_without_target"]) == (0, rows)
    assert all(metric["value"] is None for metric in scores["models"]["joint"][0]["metrics"].values())
    score, target = read_predictions(result.folder / "predictions-joint-0.arrow")
    assert (len(score), len(target)) == (0, 0)


@pytest.mark.parametrize("task", ["animal", "weight"])
def test_a_diverged_model_has_no_scores_but_breaks_nothing(place, tmp_path, task):
    folder = trained(tmp_path / "bad", place.spec, place.data, steps=0, seed=5)
    weights = load_file(folder / "model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, folder / "model.safetensors")
    scores = strict(evaluate_task(task, place.spec, [folder], place.alone[task], place.data, str(tmp_path)))
    assert all(metric["value"] is None for metric in scores["models"]["joint"][0]["metrics"].values())
    assert all(metric["value"] is not None for metric in scores["models"]["independent"][0]["metrics"].values())


class Known:
    """A champion that says what it was told to say."""

    def __init__(self, spec, fitted, answer):
        self.spec, self.fitted, self.answer, self.asked = spec, fitted, answer, []

    @property
    def tasks(self):
        return list(self.spec.tasks)

    def scores(self, task, batches):
        self.asked += [row for batch in batches for row in batch.to_pylist()]
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def champion_of(place, answer=None, classes=CLASSES, **changes):
    """A champion of the same document that is right everywhere, with its own order of classes."""
    rows = raw_rows(ROWS)
    if answer is None:
        answer = np.nan_to_num(rows["weight"].to_numpy(zero_copy_only=False)).astype(np.float32)
    return Known(document(**changes), {"animals": {"animal": {"classes": classes}, "weight": {}}}, answer)


def right(classes):
    """Sure and right probabilities of `classes`; of none where the class is not known."""
    truth = raw_rows(ROWS)["animal"].to_pylist()
    return np.array([[float(label == name) for name in classes] for label in truth], np.float32)


def test_with_no_champion_its_list_is_empty_and_says_so(place):
    scores = strict(run(place, "animal"))
    assert scores["models"]["champion"] == []
    assert (scores["champion_version"], scores["champion_status"], scores["champion_note"]) == (None, "none", "no model is promoted")


def test_the_champion_reads_the_raw_test_rows_in_their_order(place):
    champion = champion_of(place)
    scores = strict(run(place, "weight", champion=("v7", champion)))
    assert champion.asked == raw_rows(ROWS).to_pylist()
    assert (scores["champion_version"], scores["champion_status"], scores["champion_note"]) == ("v7", "scored", None)
    assert scores["models"]["champion"][0]["metrics"]["mae"]["value"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("task", ["animal", "weight"])
def test_a_loaded_model_scores_raw_rows_as_it_scored_prepared_ones(place, task):
    scores = strict(run(place, task, champion=("real", trainer.load(str(place.joint[0])))))
    assert scores["champion_status"] == "scored"
    for name, metric in scores["models"]["champion"][0]["metrics"].items():
        assert metric == {end: pytest.approx(value, rel=1e-5) for end, value in scores["models"]["joint"][0]["metrics"][name].items()}


def test_a_loaded_model_of_another_task_is_no_champion_of_this_one(place):
    scores = strict(run(place, "weight", champion=("alone", trainer.load(str(place.alone["animal"][0])))))
    assert (scores["champion_status"], scores["models"]["champion"]) == ("unknown_task", [])


def test_the_classes_of_the_champion_are_matched_by_name(place):
    names = ["cow", "dog", "ant", "bee"]
    scores = strict(run(place, "animal", champion=("v8", champion_of(place, right(names), names))))
    assert scores["models"]["champion"][0]["metrics"]["accuracy"]["value"] == 1


def test_a_class_the_champion_never_saw_counts_against_it(place):
    names = ["bee", "cow"]
    answer = right(names)
    answer[answer.sum(1) == 0, 0] = 1  # it takes every ant for a bee
    scores = strict(run(place, "animal", champion=("v9", champion_of(place, answer, names))))
    ants = raw_rows(ROWS)["animal"].to_pylist().count("ant")
    assert scores["models"]["champion"][0]["metrics"]["accuracy"]["value"] == pytest.approx(1 - ants / scores["rows"])


@pytest.mark.parametrize(
    ("version", "task", "changes", "status", "note"),
    [
        ("a", "weight", {"tasks": {"mass": "weight"}}, "unknown_task", "the champion does not know the task 'weight', only animal, mass"),
        ("b", "weight", {"target": "animal"}, "unfit",
         "the champion's task 'weight' predicts the category 'animal', not the number 'weight'"),
        ("c", "weight", {"answer": DataError.at("column x", "is not there", "add it")}, "unfit",
         "the champion can't read these rows: column x: is not there"),
    ],
)  # fmt: skip
def test_a_champion_that_does_not_fit_is_left_out_and_says_why(place, version, task, changes, status, note):
    spec = document()
    tasks = dict(spec.tasks)
    if "tasks" in changes:
        tasks["mass"] = tasks.pop("weight")
    if "target" in changes:
        tasks["weight"] = tasks["animal"]
    champion = champion_of(place, changes.get("answer"))
    champion.spec = spec.model_copy(update={"tasks": tasks})
    scores = strict(run(place, task, champion=(version, champion)))
    assert scores["models"]["champion"] == []
    assert (scores["champion_version"], scores["champion_status"], scores["champion_note"]) == (version, status, note)


def test_a_champion_of_another_split_is_scored_with_a_warning(place):
    champion = champion_of(place, data={"animals": {"split": {"salt": "other"}}})
    scores = strict(run(place, "weight", champion=("w", champion)))
    assert scores["models"]["champion"]
    assert "may have learnt from these test rows" in scores["champion_note"]


def test_a_champion_that_skips_rows_is_our_fault_and_is_not_hidden(place):
    with pytest.raises(CotrainError, match=f"gave 3 predictions for {ROWS} test rows"):
        run(place, "weight", champion=("x", champion_of(place, np.zeros(3))))
