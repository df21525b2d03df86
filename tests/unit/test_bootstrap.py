"""Intervals hold the truth as often as they say, with one seed and with several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.bootstrap import counts, interval, on_all_rows, over_seeds, resample
from trainer.catalog import find
from trainer.parts import Metric

ACCURACY = find("metric", "accuracy")()
TRIALS = 400


def one_hot(hit: np.ndarray) -> torch.Tensor:
    """Predictions of two classes that are right where `hit` is; every target is 0."""
    return torch.nn.functional.one_hot(torch.tensor(~hit).long(), 2).float()


def resampled(metrics: dict[str, Metric], models: list[torch.Tensor], target: torch.Tensor, classes: int, resamples: int) -> list[dict]:
    return resample(metrics, models, target, classes, resamples, on_all_rows(metrics, models, target, classes))


def difference(joint: np.ndarray, other: np.ndarray, confidence: float = 0.95, resamples: int = 400) -> tuple[float, float]:
    """The interval of joint minus other, given which rows each seed `[S, N]` gets right."""
    models = [one_hot(hit) for hit in (*joint, *other)]
    target = torch.zeros(joint.shape[1], dtype=torch.int64)
    values = np.stack([found["accuracy"] for found in resampled({"accuracy": ACCURACY}, models, target, 2, resamples)])
    sides = [(joint.mean(1), values[: len(joint)]), (other.mean(1), values[len(joint) :])]
    ours_R, theirs_R = over_seeds(sides, confidence)
    return interval(ours_R - theirs_R, confidence)


def test_resamples_are_whole_draws_of_as_many_rows_and_always_the_same():
    blocks = np.concatenate(list(counts(30_000, 50)))
    assert blocks.shape == (50, 30_000)
    assert (blocks.sum(1) == 30_000).all()
    assert np.array_equal(blocks, np.concatenate(list(counts(30_000, 50))))
    # each count is Poisson(1) in the limit: variance 1
    assert blocks.var() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.92, 0.975), (0.8, 0.76, 0.84)])
def test_an_interval_holds_a_known_difference_as_often_as_it_says(confidence, least, most):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(TRIALS):
        # models agree on most rows, as models of one task do: right in 80 % and 75 % of rows
        luck = rng.random(300)
        joint, other = (luck + rng.normal(0, 0.05, 300))[None] < 0.8, (luck + rng.normal(0, 0.05, 300))[None] < 0.75
        low, high = difference(joint, other, confidence)
        held += low <= 0.05 <= high
    # 0.05 but for the noise past the ends of the uniform draw
    assert least <= held / TRIALS <= most


def test_equal_models_are_told_apart_in_few_cases():
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(TRIALS):
        luck = rng.random(300)
        joint, other = ((luck + rng.normal(0, 0.1, 300))[None] < 0.8 for _ in range(2))
        low, high = difference(joint, other)
        told += low > 0 or high < 0
    assert told / TRIALS <= 0.08


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_with_few_seeds_the_interval_still_holds_training_noise(seeds):
    rng = np.random.default_rng(seeds)
    told = 0
    for _ in range(TRIALS):
        # both ways of training give 80 % on average; one run is 4 points off it, twice what 300 rows are
        skill = rng.normal(0.8, 0.04, (2, seeds, 1))
        joint, other = rng.random((300,)) < skill
        low, high = difference(joint, other)
        told += low > 0 or high < 0
    assert 0.005 <= told / TRIALS <= 0.08


def test_identical_seeds_add_no_width():
    hit = np.random.default_rng(0).random((1, 200)) < 0.7
    other = np.random.default_rng(1).random((1, 200)) < 0.7
    assert difference(np.repeat(hit, 3, 0), np.repeat(other, 3, 0)) == pytest.approx(difference(hit, other))


def test_pairing_makes_a_small_difference_visible():
    rng = np.random.default_rng(0)
    joint = rng.random((1, 1000)) < 0.7
    other = joint & (rng.random((1, 1000)) > 0.03)  # wrong wherever joint is, and in 3 % of the rest
    low, high = difference(joint, other)
    assert 0 < low < high
    unpaired = 1.96 * (2 * 0.7 * 0.3 / 1000) ** 0.5
    assert high - low < unpaired


def test_an_interval_leaves_out_resamples_without_a_value():
    assert interval(np.array([np.nan, 1.0, np.nan, 1.0]), 0.95) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]), 0.95)).all()


def test_what_is_not_defined_is_not_resampled_and_no_rows_are_no_error():
    auroc = find("metric", "auroc")()
    one_class = resampled({"auroc": auroc, "accuracy": ACCURACY}, [torch.rand(5, 2)], torch.zeros(5, dtype=torch.int64), 2, 100)
    assert np.isnan(one_class[0]["auroc"]).all()
    assert np.isfinite(one_class[0]["accuracy"]).all()
    nothing = resampled({"accuracy": ACCURACY}, [torch.empty(0, 2)], torch.empty(0, dtype=torch.int64), 2, 100)
    assert np.isnan(nothing[0]["accuracy"]).all()


def test_a_metric_is_computed_once_on_all_rows_however_many_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some metrics take seconds."""
    calls, compute = [], type(ACCURACY).compute
    monkeypatch.setattr(type(ACCURACY), "compute", lambda self, *args: calls.append(1) or compute(self, *args))
    models = [torch.rand(50, 2), torch.rand(50, 2)]
    resampled({"accuracy": ACCURACY}, models, torch.zeros(50, dtype=torch.int64), 2, 200)
    assert len(calls) == len(models)
