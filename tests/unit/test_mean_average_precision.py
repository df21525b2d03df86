"""Mean average precision: pycocotools, and its resampled form against pycocotools on the rows drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.catalog import find
from trainer.parts import Metric

METRICS = {kind: find("metric", kind)() for kind in ("map", "map_50")}


def sample(rows: int = 40, seed: int = 0, most: int = 5, kinds: int = 3) -> tuple[Tensor, Tensor]:
    """Pictures with up to 4 things; detections that are near some of them, of the wrong class, doubled, or of nothing."""
    rng = np.random.default_rng(seed)
    target, score = np.zeros((rows, 4, 5)), rng.uniform(0, 0.4, (rows, most, 6))
    target[..., 4] = -1
    score[..., 2:4] += score[..., :2] + 0.05
    score[..., 4] = rng.integers(0, kinds + 1, (rows, most))  # a class that never occurs among them
    for n in range(rows):
        for m in range(rng.integers(0, 5)):
            corner = rng.uniform(0, 0.5, 2)
            target[n, m] = *corner, *(corner + rng.uniform(0.1, 0.5, 2)), rng.integers(kinds)
            for p in rng.choice(most, rng.integers(0, 3), replace=False):
                score[n, p, :5] = target[n, m] + np.append(rng.uniform(-0.04, 0.04, 4), 0)
                score[n, p, 5] = rng.uniform(0.2, 1)
    order = (-score[..., 5]).argsort(1)[..., None]
    return torch.tensor(np.take_along_axis(score, order, 1), dtype=torch.float32), torch.tensor(target, dtype=torch.float32)


def perfect(target: Tensor) -> Tensor:
    return torch.cat([target, (target[..., 4:] >= 0).float()], 2).clamp_min(0)


@pytest.mark.parametrize("kind", METRICS)
def test_resampling_at_once_equals_pycocotools_on_the_rows_drawn(kind: str) -> None:
    metric, (score, target) = METRICS[kind], sample(14)
    drawn = np.random.default_rng(0).integers(0, 14, (40, 14))
    drawn[0] = int((target[..., 4] < 0).all(1).nonzero()[0])  # one picture again and again, which shows nothing
    count_RN = torch.tensor(np.stack([np.bincount(row, minlength=14) for row in drawn]), dtype=torch.float32)
    found, wanted = metric.resampled(score, target, 0, count_RN), Metric.resampled(metric, score, target, 0, count_RN)
    assert math.isnan(found[0])
    torch.testing.assert_close(found, wanted.double(), atol=1e-6, rtol=1e-6, equal_nan=True)
    assert found[1:].std() > 0.01


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("seed", range(4))
def test_the_resampled_form_of_all_rows_is_what_pycocotools_says(kind: str, seed: int) -> None:
    metric, (score, target) = METRICS[kind], sample(60, seed)
    value = metric.compute(score, target, 0)
    assert 0.05 < value < 0.95
    assert float(metric.resampled(score, target, 0, torch.ones(1, 60))[0]) == pytest.approx(value, abs=1e-9)


def test_average_precision_of_a_list_that_can_be_checked_by_hand() -> None:
    """Three things; right, wrong, right: precision 1 up to recall 1/3, 2/3 up to 2/3, 0 beyond. 34, 33 and 34 of the 101 recalls."""
    box = [0.1, 0.1, 0.3, 0.3]
    target = torch.tensor([[[*box, 0.0]], [[*box, 0.0]], [[*box, 0.0]]])
    far = [0.6, 0.6, 0.9, 0.9]
    score = torch.tensor([[[*box, 0, 0.9]], [[*far, 0, 0.8]], [[*box, 0, 0.7]]])
    wanted = (34 * 1 + 33 * 2 / 3) / 101
    for metric in METRICS.values():
        assert metric.compute(score, target, 0) == pytest.approx(wanted)
        assert float(metric.resampled(score, target, 0, torch.ones(1, 3))[0]) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", METRICS)
def test_nothing_is_better_than_a_perfect_prediction(kind: str) -> None:
    metric, (score, target) = METRICS[kind], sample()
    assert metric.compute(perfect(target), target, 0) == pytest.approx(1.0)
    real = metric.compute(score, target, 0)
    mixed = metric.compute(score.roll(1, 0), target, 0)
    assert mixed < real < 1


@pytest.mark.parametrize("kind", METRICS)
def test_the_order_of_pictures_does_not_matter(kind: str) -> None:
    metric, (score, target) = METRICS[kind], sample()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    assert metric.compute(score[order], target[order], 0) == pytest.approx(metric.compute(score, target, 0), abs=1e-9)


@pytest.mark.parametrize("kind", METRICS)
def test_what_can_not_be_judged_is_nan(kind: str) -> None:
    metric, (score, target) = METRICS[kind], sample(8)
    empty = torch.zeros_like(target)
    empty[..., 4] = -1
    assert math.isnan(metric.compute(score, empty, 0))
    assert math.isnan(metric.compute(score[:0], target[:0], 0))
    assert math.isnan(float(metric.resampled(score, empty, 0, torch.ones(1, 8))[0]))
    score[0, 0, 0] = math.nan
    assert math.isnan(metric.compute(score, target, 0))


def test_half_an_overlap_is_enough_for_map_50_and_not_for_map() -> None:
    target = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 1.0]]])
    score = torch.tensor([[[0.0, 0.0, 0.5, 0.32, 1.0, 0.9]]])  # IoU 0.64: right at 0.5, 0.55 and 0.6
    assert METRICS["map_50"].compute(score, target, 0) == pytest.approx(1.0)
    assert METRICS["map"].compute(score, target, 0) == pytest.approx(0.3)


def test_pycocotools_does_not_talk(capfd: pytest.CaptureFixture[str]) -> None:
    METRICS["map"].compute(*sample(5), 0)
    assert capfd.readouterr().out == ""
