"""The verdict: who is better, by how much, how sure that is, what it cost, and whether it may be published."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.score_inputs import document, prepared, raw_rows, trained
from trainer.compare import FEW_ROWS, compare, cost, judge, sentence
from trainer.errors import CotrainError
from trainer.evaluate import _write_predictions, evaluate_task
from trainer.gates import gate
from trainer.report import render
from trainer.results import write_manifest

LABELS = ["no", "yes"]


def hits(share, rows=1000, seed=0):
    """Predictions of two classes that are right in exactly this share of the rows; every target is 0."""
    right = np.zeros(rows, bool)
    right[np.random.default_rng(seed).permutation(rows)[: round(share * rows)]] = True
    return torch.nn.functional.one_hot(torch.tensor(~right).long(), 2).float()


def errors(size, rows=1000, seed=0):
    """Predictions of a target of zeros, off by `size` on average."""
    return torch.tensor(np.random.default_rng(seed).normal(0, size * (np.pi / 2) ** 0.5, rows), dtype=torch.float32)


def scored(folder, task="animal", status="none", note="no model is promoted", **models):
    """A folder of `results/score` with the given predictions of each role, as `evaluate_task` writes it."""
    folder.mkdir(parents=True)
    labels = LABELS if task == "animal" else []
    primary, higher = ("accuracy", True) if labels else ("mae", False)
    entries = {"joint": [], "independent": [], "champion": []}
    rows = len(models["joint"][0])
    for role, scores in models.items():
        for seed, score in enumerate(scores):
            file = f"predictions-{role}-{seed}.arrow"
            _write_predictions(folder / file, score, torch.zeros(rows, dtype=torch.int64 if labels else torch.float32))
            entries[role].append({"seed": seed, "predictions": file, "metrics": {"other": {"value": 0.5 + seed}}})
    (folder / "scores.json").write_text(json.dumps({
        "task": task, "target": "category" if labels else "number", "classes": labels, "rows": rows, "primary": primary,
        "higher_is_better": {primary: higher, "other": True}, "models": entries,
        "champion_version": "v1" if models.get("champion") else None, "champion_status": "scored" if models.get("champion") else status,
        "champion_note": None if models.get("champion") else note,
    }))  # fmt: skip
    write_manifest(folder, "score", f"score-{task}-{folder.name}")
    return folder


def judged(tmp_path, task="animal", compare_options=None, **models):
    return judge(document(compare=compare_options or {}), task, scored(tmp_path / "score", task, **models))


@pytest.mark.parametrize(
    ("task", "joint", "alone", "word"),
    [
        ("animal", hits(0.9), hits(0.8, seed=1), "better"),
        ("animal", hits(0.8), hits(0.9, seed=1), "worse"),
        ("animal", hits(0.8), hits(0.79, seed=1), "same"),
        ("animal", hits(0.8), hits(0.8), "same"),
        ("weight", errors(1.0), errors(2.0, seed=1), "better"),
        ("weight", errors(2.0), errors(1.0, seed=1), "worse"),
        ("weight", errors(1.0), errors(1.0, seed=1), "same"),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_zero_on_the_right_side(tmp_path, task, joint, alone, word):
    entry = judged(tmp_path, task, joint=[joint], independent=[alone])
    found = entry["vs_independent"]
    assert found["verdict"] == word
    assert found["difference"] == pytest.approx(entry["joint"]["value"] - entry["independent"]["value"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert (found["low"] > 0 or found["high"] < 0) == (word != "same")


def test_the_verdict_holds_what_the_score_folder_says(tmp_path):
    entry = judged(tmp_path, joint=[hits(0.9)], independent=[hits(0.8)], champion=[hits(0.7)])
    assert (entry["metric"], entry["higher_is_better"], entry["target"], entry["rows"]) == ("accuracy", True, "category", 1000)
    assert entry["joint"]["seeds"] == pytest.approx([0.9])
    assert entry["joint"]["low"] < 0.9 < entry["joint"]["high"]
    assert entry["vs_champion"]["difference"] == pytest.approx(0.2)
    assert entry["metrics"] == {"other": {"higher_is_better": True, "joint": 0.5, "independent": 0.5, "champion": 0.5}}


def test_without_other_models_there_is_nothing_to_compare_with(tmp_path):
    entry = judged(tmp_path, joint=[hits(0.9)])
    assert entry["independent"] is entry["champion"] is entry["vs_independent"] is entry["vs_champion"] is None
    assert entry["metrics"]["other"]["independent"] is None


def test_few_rows_are_too_few_for_a_verdict(tmp_path):
    # every row agrees, so the interval has no width at all
    entry = judged(tmp_path, joint=[hits(1.0, FEW_ROWS - 1)], independent=[hits(0.0, FEW_ROWS - 1)])
    assert entry["vs_independent"]["verdict"] == "same"
    assert entry["vs_independent"]["says"] == "19 test rows are too few to tell: at least 20 are needed"


def test_seeds_are_averaged_and_their_scatter_widens_the_interval(tmp_path):
    calm = judged(tmp_path / "calm", joint=[hits(0.85, seed=s) for s in range(3)], independent=[hits(0.8, seed=s + 9) for s in range(3)])
    wild = judged(
        tmp_path / "wild",
        joint=[hits(share, seed=s) for s, share in enumerate((0.75, 0.85, 0.95))],
        independent=[hits(share, seed=s + 9) for s, share in enumerate((0.72, 0.8, 0.88))],
    )
    assert wild["joint"]["seeds"] == pytest.approx([0.75, 0.85, 0.95])
    for entry in (calm, wild):
        assert entry["joint"]["value"] == pytest.approx(0.85)
        assert entry["vs_independent"]["difference"] == pytest.approx(0.05)
    assert calm["vs_independent"]["verdict"] == "better"
    assert wild["vs_independent"]["verdict"] == "same"
    assert wild["joint"]["high"] - wild["joint"]["low"] > 3 * (calm["joint"]["high"] - calm["joint"]["low"])
    assert wild["metrics"]["other"]["joint"] == pytest.approx(1.5)


def test_a_promoted_model_is_one_model_and_has_no_training_noise(tmp_path):
    entry = judged(tmp_path, joint=[hits(share, seed=s) for s, share in enumerate((0.84, 0.85, 0.86))], champion=[hits(0.8, seed=7)])
    assert entry["vs_champion"]["verdict"] == "better"
    assert entry["champion"]["seeds"] == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("joint", "says"),
    [
        (torch.full((100, 2), torch.nan), "joint: its predictions are not finite: training diverged"),
        (torch.empty(0, 2), "joint: no test row has a target"),
    ],
)
def test_an_undefined_metric_is_undefined_and_says_why(tmp_path, joint, says):
    entry = judged(tmp_path, joint=[joint], independent=[hits(0.5, len(joint))])
    assert entry["joint"] == {"value": None, "low": None, "high": None, "seeds": [None]}
    assert entry["vs_independent"]["verdict"] == "undefined"
    assert entry["vs_independent"]["difference"] is None
    assert entry["vs_independent"]["says"].startswith(says)
    json.dumps(entry, allow_nan=False)


def test_one_diverged_seed_makes_the_mean_undefined(tmp_path):
    entry = judged(tmp_path, joint=[hits(0.9, 100), torch.full((100, 2), torch.nan)], independent=[hits(0.5, 100)])
    assert entry["joint"]["value"] is None
    assert entry["joint"]["seeds"] == [pytest.approx(0.9), None]
    assert entry["vs_independent"]["verdict"] == "undefined"


def test_the_level_of_confidence_is_that_of_the_document(tmp_path):
    models = {"joint": [hits(0.8)], "independent": [hits(0.79, seed=1)]}
    entries = [judged(tmp_path / str(level), compare_options={"confidence": level}, **models) for level in (0.99, 0.6)]
    wide, narrow = (entry["vs_independent"] for entry in entries)
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


# --- gates


def entry_of(difference=0.0, verdict="same", higher=True, status="scored", note=None, independent=True, champion=True):
    """The verdict of a task as far as gates look at it."""
    found = {"difference": difference, "low": -1.0, "high": 1.0, "verdict": verdict, "says": "joint: no test row has a target"}
    return {
        "metric": "accuracy" if higher else "mae", "higher_is_better": higher, "vs_independent": found if independent else None,
        "vs_champion": found if champion else None, "champion_status": status, "champion_note": note,
    }  # fmt: skip


UNDEFINED = {"difference": None, "verdict": "undefined"}


@pytest.mark.parametrize(
    ("entry", "passed", "says"),
    [
        (entry_of(0.2), True, "animal is 0.2 better in accuracy than independent training; at most 0.05 worse is allowed"),
        (entry_of(0.0), True, "animal is as good in accuracy as independent training; at most 0.05 worse is allowed"),
        (entry_of(0.9 - 0.95), True, "animal is 0.05 worse in accuracy than independent training; at most 0.05 worse is allowed"),
        (entry_of(-0.051), False, "animal is 0.051 worse in accuracy than independent training; at most 0.05 worse is allowed"),
        (entry_of(-3.0, higher=False), True, "animal is 3 better in mae than independent training; at most 0.05 worse is allowed"),
        (entry_of(0.06, higher=False), False, "animal is 0.06 worse in mae than independent training; at most 0.05 worse is allowed"),
        (entry_of(**UNDEFINED), False, "accuracy of animal is not defined (joint: no test row has a target)"),
        (entry_of(independent=False), False, "animal was not trained alone, so no drop can be measured: set compare.independent to true"),
    ],
)
def test_worst_drop_looks_at_the_difference_itself(entry, passed, says):
    found = gate(document(compare={"gate": {"worst_drop": 0.05}}), {"animal": entry})
    assert found["passed"] is passed
    assert found["checks"][0]["says"] == says
    assert found["checks"][0]["wanted"] == ">= -0.05"
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("entry", "passed", "says"),
    [
        (entry_of(0.1, "better"), True, "animal is better than the champion in accuracy (+0.1, -1 to +1)"),
        (entry_of(-0.1, "same"), True, "animal is not clearly different from the champion in accuracy (-0.1, -1 to +1)"),
        (entry_of(-0.1, "worse"), False, "animal is worse than the champion in accuracy (-0.1, -1 to +1)"),
        (entry_of(-0.1, "better", higher=False, note="hm"), True, "animal is better than the champion in mae (-0.1, -1 to +1); hm"),
        (entry_of(**UNDEFINED), False, "accuracy of animal is not defined (joint: no test row has a target)"),
        (entry_of(champion=False, status="none", note="none yet"), True, "animal has no champion to beat: none yet"),
        (entry_of(champion=False, status="unknown_task", note="it is new"), True, "animal has no champion to beat: it is new"),
        (entry_of(champion=False, status="unfit", note="it differs"), False, "animal can't be compared with the champion: it differs"),
    ],
)
def test_beat_champion_asks_not_to_be_worse(entry, passed, says):
    found = gate(document(compare={"gate": {"beat_champion": ["animal"]}}), {"animal": entry, "weight": entry_of(-9, "worse")})
    assert [(check["task"], check["passed"], check["says"]) for check in found["checks"]] == [("animal", passed, says)]
    assert found["passed"] is passed


def test_every_task_is_gated_and_one_failure_fails_the_whole():
    spec = document(compare={"gate": {"worst_drop": 0.0, "beat_champion": ["weight"]}})
    found = gate(spec, {"animal": entry_of(0.1), "weight": entry_of(0.1, "better", higher=False)})
    assert [(check["name"], check["task"], check["passed"]) for check in found["checks"]] == [
        ("worst_drop", "animal", True), ("worst_drop", "weight", False), ("beat_champion", "weight", True),
    ]  # fmt: skip
    assert found["passed"] is False
    assert found["checks"][0]["wanted"] == ">= 0"


def test_without_conditions_everything_passes():
    assert gate(document(), {"animal": entry_of(-9, "worse")}) == {"passed": True, "checks": []}


# --- cost


def spent(train, total=10.0, ranks=2, parameters=100, flops=50):
    return {"seconds": {"train": train, "total": total}, "ranks": ranks, "parameters": parameters, "flops_per_row": flops}


def test_cost_is_that_of_one_joint_model_against_the_sum_over_tasks():
    found = cost([spent(4.0), spent(6.0)], {"animal": [spent(3.0), spent(5.0)], "weight": [spent(2.0, ranks=1, parameters=90)]})
    assert found["joint"] == {"seconds": 5.0, "wall_seconds": 10.0, "process_seconds": 10.0, "parameters": 100, "flops_per_row": 50}
    assert found["independent"] == {
        "seconds": 6.0, "wall_seconds": 20.0, "process_seconds": 10.0, "parameters": 190, "flops_per_row": 100, "models": 2,
    }  # fmt: skip


def test_a_cost_nobody_measured_stays_unknown():
    found = cost([spent(4.0, flops=None)], {"animal": [spent(3.0, flops=None)], "weight": [spent(3.0)]})
    assert found["joint"]["flops_per_row"] is found["independent"]["flops_per_row"] is None
    assert cost([spent(4.0)], {})["independent"] is None


# --- the whole


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Real models of two tasks, two seeds each, scored on real folders; one independent model never trained."""
    root = tmp_path_factory.mktemp("compare")
    spec = document(seeds=2, compare={"gate": {"worst_drop": 0.05, "beat_champion": ["animal"]}})
    data = prepared(root / "data", spec, raw_rows(500))
    joint = [trained(root / f"joint-{seed}", spec, data, seed=seed) for seed in (0, 1)]
    alone = {
        "animal": [trained(root / f"animal-{seed}", spec, data, ["animal"], seed, role="independent", steps=0) for seed in (0, 1)],
        "weight": [trained(root / f"weight-{seed}", spec, data, ["weight"], seed, role="independent") for seed in (0, 1)],
    }
    scores = [evaluate_task(task, spec, joint, alone[task], data, str(root)).folder for task in spec.tasks]
    read = lambda folders: [json.loads((folder / "result.json").read_text()) for folder in folders]  # noqa: E731
    apart = {task: read(runs) for task, runs in alone.items()}
    return SimpleNamespace(root=str(root), spec=spec, scores=scores, joint=read(joint), alone=apart)


def test_a_trained_joint_model_beats_untrained_ones_from_end_to_end(place):
    result = compare(place.spec, place.scores, place.joint, place.alone, place.root)
    verdict = json.loads((result.folder / "verdict.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert list(verdict["tasks"]) == ["animal", "weight"]
    assert verdict["tasks"]["animal"]["vs_independent"]["verdict"] == "better"
    assert verdict["helped"] >= 1
    assert (verdict["name"], verdict["confidence"], verdict["seeds"], verdict["champion"]) == ("zoo", 0.95, 2, None)
    assert verdict["cost"]["joint"]["seconds"] == 4.5
    assert verdict["cost"]["independent"]["process_seconds"] == 18.0
    scores = [json.loads((folder / "scores.json").read_text()) for folder in place.scores]
    for score in scores:
        values = [entry["metrics"][score["primary"]]["value"] for entry in score["models"]["joint"]]
        assert verdict["tasks"][score["task"]]["joint"]["seeds"] == pytest.approx(values)
    assert [check["name"] for check in verdict["gate"]["checks"]] == ["worst_drop", "worst_drop", "beat_champion"]
    assert verdict["gate"]["checks"][2]["says"] == "animal has no champion to beat: no model is promoted"


def test_the_verdict_is_found_again_until_something_it_depends_on_changes(place):
    first = compare(place.spec, place.scores, place.joint, place.alone, place.root)
    again = compare(place.spec, place.scores, place.joint, place.alone, place.root)
    assert again.reused
    assert again.key == first.key
    assert compare(document(compare={"gate": {"worst_drop": 0.5}}), place.scores, place.joint, place.alone, place.root).key != first.key
    assert compare(place.spec, place.scores, place.joint[:1], place.alone, place.root).key != first.key


def test_a_task_without_scores_is_refused(place):
    with pytest.raises(CotrainError, match="no scores of weight: every task is judged, or none is"):
        compare(place.spec, place.scores[:1], place.joint, place.alone, place.root)


def test_the_report_can_show_the_verdict(place):
    verdict = compare(place.spec, place.scores, place.joint, place.alone, place.root).json("verdict.json")
    scores = [json.loads((folder / "scores.json").read_text()) for folder in place.scores]
    page = render(
        spec=place.spec.to_json(), verdict=verdict, data={}, scores={score["task"]: score for score in scores}, timings=[],
        runs={"joint": [{"result": run, "history": []} for run in place.joint], "independent": {}},
        outcome={"published": None, "reasons": []},
    )  # fmt: skip
    assert "animal" in page
    assert "better" in page


def test_the_terminal_reads_one_line_a_task_then_the_count_the_cost_and_the_gates():
    side = {"value": 0.9, "low": 0.8, "high": 1.0, "seeds": [0.9]}
    found = {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "better", "says": ""}
    base = {"metric": "accuracy", "joint": side, "champion_note": None, "champion_status": "scored"}
    same = {**found, "difference": 0.0, "low": -0.1, "high": 0.1, "verdict": "same"}
    lost = {"difference": None, "low": None, "high": None, "verdict": "undefined", "says": "joint: no test row has a target"}
    strange = {"champion": None, "vs_champion": None, "champion_note": "no such task", "champion_status": "unknown_task"}
    checks = [{"name": "worst_drop", "passed": True, "says": "fine"}, {"name": "beat_champion", "passed": False, "says": "bad"}]
    verdict = {
        "seeds": 1, "helped": 1, "hurt": 0,
        "tasks": {
            "animal": {**base, "independent": {**side, "value": 0.8}, "champion": side, "vs_independent": found, "vs_champion": same},
            "weight": {**base, **strange, "independent": side, "vs_independent": lost},
        },
        "cost": cost([spent(4.0, parameters=12345)], {"animal": [spent(10.0, parameters=20000)]}),
        "gate": {"passed": False, "checks": checks},
    }  # fmt: skip
    assert sentence(verdict) == [
        "animal: accuracy 0.9 joint, 0.8 alone: +0.1 (+0.05 to +0.15), better",
        "animal: accuracy 0.9 joint, 0.9 champion: +0 (-0.1 to +0.1), same",
        "weight: accuracy is not defined (joint: no test row has a target)",
        "weight: no such task",
        "joint training helped 1 and hurt 0 of 2 tasks",
        "intervals hold the luck of the test rows only: one seed says nothing about training noise (see `seeds`)",
        "training took 4.0 s jointly, 10.0 s alone in all; parameters 12,345 in one model, 20,000 in one per task",
        "gate worst_drop, passed: fine",
        "gate beat_champion, FAILED: bad",
    ]


def test_the_terminal_has_something_to_say_where_nothing_was_compared(tmp_path):
    entry = judged(tmp_path, joint=[hits(0.9)])
    gates = {"passed": True, "checks": []}
    verdict = {"seeds": 1, "helped": 0, "hurt": 0, "tasks": {"animal": entry}, "cost": cost([spent(1.0)], {}), "gate": gates}
    assert sentence(verdict) == ["animal: accuracy 0.9, compared with nothing"]
