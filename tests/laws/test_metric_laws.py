"""Laws that every metric of the catalogue keeps."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from scipy import stats

from trainer.catalog import CATALOG, find
from trainer.parts import Metric

METRICS = {kind: find("metric", kind)() for kind in CATALOG["metric"]}
CLASS_METRICS = [kind for kind, metric in METRICS.items() if "category" in metric.targets]
NUMBER_METRICS = [kind for kind, metric in METRICS.items() if "number" in metric.targets]
CASES = [(kind, classes) for kind in CLASS_METRICS for classes in (2, 3, 20)] + [(kind, 0) for kind in NUMBER_METRICS]


@pytest.fixture(autouse=True)
def _no_warnings():
    """A metric never warns, whatever it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sample(classes: int, rows: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are better than chance, with ties, and targets where the last of many classes never occurs."""
    rng = np.random.default_rng(seed)
    if not classes:
        target = rng.normal(50, 20, rows).round()
        return torch.tensor((target + rng.normal(0, 10, rows)).round(), dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
    target = rng.integers(0, max(2, classes - 1), rows)
    logits = rng.normal(0, 1.5, (rows, classes)).round(1) + 2 * np.eye(classes)[target]
    return torch.tensor(logits, dtype=torch.float32).softmax(1), torch.tensor(target)


def perfect(target: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(target, classes).float() if classes else target.clone()


def calibration(target: np.ndarray, score: np.ndarray, bins: int = 15) -> float:
    sure, right = score.max(1).astype(np.float64), score.argmax(1) == target
    place = np.clip(np.floor(sure * bins), 0, bins)
    return sum(abs(sure[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in np.unique(place))


def auroc(target: np.ndarray, score: np.ndarray) -> float:
    present = np.unique(target)
    if score.shape[1] == 2:
        return reference.roc_auc_score(target, score[:, 1])
    return float(np.mean([reference.roc_auc_score(target == k, score[:, k]) for k in present]))


REFERENCES = {
    "accuracy": lambda y, p: reference.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda y, p: np.mean([(p.argmax(1) == y)[y == k].mean() for k in np.unique(y)]),
    "f1_macro": lambda y, p: reference.f1_score(y, p.argmax(1), average="macro"),
    "auroc": auroc,
    "log_loss": lambda y, p: reference.log_loss(y, p / p.sum(1, keepdims=True), labels=range(p.shape[1])),
    "calibration_error": calibration,
    "r2": reference.r2_score,
    "mae": reference.mean_absolute_error,
    "rmse": reference.root_mean_squared_error,
    "spearman": lambda y, p: stats.spearmanr(y, p).statistic,
}


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_a_metric_agrees_with_an_independent_reference(kind, classes):
    for seed in range(3):
        score, target = sample(classes, seed=seed)
        wanted = REFERENCES[kind](target.numpy().astype(np.float64 if not classes else np.int64), score.numpy().astype(np.float64))
        assert METRICS[kind].compute(score, target, classes) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_no_prediction_is_better_than_a_perfect_one(kind, classes):
    metric = METRICS[kind]
    score, target = sample(classes)
    best = metric.compute(perfect(target, classes), target, classes)
    real = metric.compute(score, target, classes)
    shuffled = metric.compute(score[torch.randperm(len(score), generator=torch.Generator().manual_seed(1))], target, classes)
    sign = 1 if metric.higher_is_better else -1
    assert best == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-6)
    assert sign * best > sign * real
    assert sign * real > sign * shuffled


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_the_order_of_rows_does_not_matter(kind, classes):
    score, target = sample(classes)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    metric = METRICS[kind]
    assert metric.compute(score[order], target[order], classes) == pytest.approx(metric.compute(score, target, classes), abs=1e-6)


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_resampling_at_once_equals_computing_on_the_rows_drawn(kind, classes):
    metric = METRICS[kind]
    # few rows, so that classes drop out of resamples and some resamples are constant
    score, target = sample(classes, rows=8)
    drawn = np.random.default_rng(0).integers(0, 8, (300, 8))
    drawn[0] = 0
    count_RN = torch.tensor(np.stack([np.bincount(row, minlength=8) for row in drawn]), dtype=torch.float32)
    found = metric.resampled(score, target, classes, count_RN)
    wanted = Metric.resampled(metric, score, target, classes, count_RN)
    assert found.shape == (300,)
    torch.testing.assert_close(found.double(), wanted.double(), atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_resampling_at_once_is_as_exact_on_many_rows(kind, classes):
    metric = METRICS[kind]
    score, target = sample(classes, rows=3000)
    rng = np.random.default_rng(0)
    count_RN = torch.tensor(np.stack([np.bincount(rng.integers(0, 3000, 3000), minlength=3000) for _ in range(3)]), dtype=torch.float32)
    found = metric.resampled(score, target, classes, count_RN)
    torch.testing.assert_close(found.double(), Metric.resampled(metric, score, target, classes, count_RN).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_hardly_any_rows_give_a_number_or_nan_but_never_an_error(kind, classes, rows):
    score, target = sample(classes, rows=4)
    value = METRICS[kind].compute(score[:rows], target[:rows], classes)
    assert isinstance(value, float)
    assert rows or math.isnan(value)


@pytest.mark.parametrize(("kind", "classes"), CASES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_gives_nan(kind, classes, bad):
    score, target = sample(classes)
    score[3] = bad
    assert math.isnan(METRICS[kind].compute(score, target, classes))


@pytest.mark.parametrize(("kind", "classes"), CASES)
def test_one_value_of_the_target_is_defined_only_for_metrics_that_need_no_other(kind, classes):
    score, _ = sample(classes)
    target = torch.zeros(400, dtype=torch.int64 if classes else torch.float32)
    assert math.isnan(METRICS[kind].compute(score, target, classes)) == (kind in {"auroc", "r2", "spearman"})


@pytest.mark.parametrize("kind", CLASS_METRICS)
def test_a_column_of_one_class_is_judged_without_an_error(kind):
    value = METRICS[kind].compute(torch.ones(5, 1), torch.zeros(5, dtype=torch.int64), 1)
    assert math.isnan(value) if kind == "auroc" else value == pytest.approx(1.0 if METRICS[kind].higher_is_better else 0.0)


@pytest.mark.parametrize("kind", CLASS_METRICS)
def test_probabilities_rounded_above_one_are_still_probabilities(kind):
    _, target = sample(3)
    nudged = perfect(target, 3) * (1 + 1e-6)
    assert METRICS[kind].compute(nudged, target, 3) == pytest.approx(1.0 if METRICS[kind].higher_is_better else 0.0, abs=1e-5)


@pytest.mark.parametrize("kind", NUMBER_METRICS)
def test_the_scale_of_a_number_changes_nothing_but_the_unit(kind):
    score, target = sample(0)
    metric = METRICS[kind]
    unit = 1 if kind in {"r2", "spearman"} else 1e-4
    found = metric.compute(score.double() * 1e-4, target.double() * 1e-4, 0)
    assert found == pytest.approx(metric.compute(score, target, 0) * unit, rel=1e-5)


def test_spearman_survives_more_ties_than_an_int32_can_sum():
    target = torch.cat([torch.zeros(70_000), torch.ones(1)])
    assert METRICS["spearman"].compute(target, target, 0) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", METRICS)
def test_a_metric_says_what_it_judges(kind):
    metric = METRICS[kind]
    assert metric.kind == kind
    assert metric.targets <= {"category", "number", "pairs", "tokens", "boxes", "images"}
    assert metric.targets


@pytest.mark.parametrize("way", ["left_to_right", "right_to_left"])
@pytest.mark.parametrize("k", [1, 3])
def test_recall_is_what_scikit_learn_makes_of_the_similarities(way: str, k: int) -> None:
    score = torch.nn.functional.normalize(torch.randn(60, 2, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    score[:, 1] = torch.nn.functional.normalize(score[:, 1] + score[:, 0], dim=-1)
    alike = (score[:, 0] @ score[:, 1].T).numpy()
    expected = reference.top_k_accuracy_score(np.arange(60), alike if way == "left_to_right" else alike.T, k=k)
    metric, target = find("metric", f"recall_{way}")(k=k), torch.zeros(60, dtype=torch.int64)
    assert 0 < expected < 1
    assert metric.compute(score, target, 0) == pytest.approx(expected)
    twice = torch.zeros(1, 60)
    twice[0, :10] = 2
    hits = torch.tensor([metric.compute(score, target, 0)])
    assert float(metric.resampled(score, target, 0, torch.ones(1, 60))[0]) == pytest.approx(float(hits))
    assert 0 <= float(metric.resampled(score, target, 0, twice)[0]) <= 1
