"""Boxes, heat maps and what a network learns them from, against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import boxes
from trainer.errors import LaunchError

K, H, W = 3, 7, 9


def some_boxes(pictures: int, most: int, seed: int = 0) -> torch.Tensor:
    """`[pictures, most, 5]`: boxes and classes, a different number in each picture."""
    rng = np.random.default_rng(seed)
    target = np.zeros((pictures, most, 5), np.float32)
    target[..., 4] = -1
    for picture in range(pictures):
        for place in range(rng.integers(0, most + 1)):
            left, top = rng.uniform(0, 0.7, 2)
            right, bottom = left + rng.uniform(0.02, 1 - left), top + rng.uniform(0.02, 1 - top)
            target[picture, place] = left, top, right, bottom, rng.integers(K)
    return torch.from_numpy(target)


@pytest.mark.parametrize(
    ("one", "other", "giou"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0 - 1 / 3),
        ([0, 0, 4, 4], [1, 1, 2, 3], 2 / 16),
        ([0, 0, 1, 1], [1, 1, 2, 2], 0 - 2 / 4),
    ],
)
def test_giou_is_what_the_areas_say(one: list[float], other: list[float], giou: float) -> None:
    a, b = torch.tensor(one, dtype=torch.float32), torch.tensor(other, dtype=torch.float32)
    assert float(boxes.giou_loss(a, b)) == pytest.approx(1 - giou, abs=1e-6)
    assert float(boxes.giou_loss(b, a)) == pytest.approx(1 - giou, abs=1e-6)


def test_overlaps_are_shares_of_points_of_a_fine_grid() -> None:
    target = some_boxes(30, 2, seed=3)[:, :, :4]
    at = (np.arange(600) + 0.5) / 600
    for one, other in target.numpy():
        inside = [(at >= b[0]) & (at < b[2]) for b in (one, other)], [(at >= b[1]) & (at < b[3]) for b in (one, other)]
        masks = [np.outer(inside[1][i], inside[0][i]) for i in (0, 1)]
        union = (masks[0] | masks[1]).mean()
        wanted = (masks[0] & masks[1]).mean() / union if union else 0.0
        assert float(boxes.overlaps(torch.tensor(one), torch.tensor(other))[0]) == pytest.approx(wanted, abs=0.03)


@settings(deadline=None, max_examples=60)
@given(st.floats(1, 60), st.floats(1, 60), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_corners_within_the_radius_keep_the_overlap_and_no_larger_radius_does(width: float, height: float, overlap: float) -> None:
    r = float(boxes.radius(torch.tensor(width, dtype=torch.float64), torch.tensor(height, dtype=torch.float64), overlap))
    box = torch.tensor([0, 0, width, height], dtype=torch.float64)

    def worst(by: float) -> float:
        moves = torch.tensor(
            [[x, y, p, q] for x in (-by, by) for y in (-by, by) for p in (-by, by) for q in (-by, by)], dtype=torch.float64
        )
        return float(boxes.overlaps(box.expand(16, 4), box + moves)[0].min())

    assert worst(r) == pytest.approx(overlap, abs=1e-6)
    assert worst(r * 1.01) < overlap


def heat_by_hand(target: np.ndarray, overlap: float) -> np.ndarray:
    """Section 3 of Objects as Points, one cell at a time."""
    heat = np.zeros((len(target), K, H, W))
    for picture, rows in enumerate(target.astype(np.float64)):
        for left, top, right, bottom, kind in rows:
            if kind < 0:
                continue
            w, h = (right - left) * W, (bottom - top) * H
            column, row = int((left + right) / 2 * W), int((top + bottom) / 2 * H)
            r = float(boxes.radius(torch.tensor(w), torch.tensor(h), overlap))
            for y in range(H):
                for x in range(W):
                    value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                    heat[picture, int(kind), y, x] = max(heat[picture, int(kind), y, x], value)
    return heat


def test_the_heat_map_is_the_highest_gaussian_of_each_class() -> None:
    target = some_boxes(12, 4)
    heat = boxes.heat_map(target, K, H, W, 0.7)
    np.testing.assert_allclose(heat.numpy(), heat_by_hand(target.numpy(), 0.7), atol=1e-5)
    assert (heat == 1).sum() >= (target[..., 4] >= 0).any(1).sum()


def test_the_focal_loss_is_the_one_of_objects_as_points() -> None:
    logit = torch.randn(2, K, H, W, generator=torch.Generator().manual_seed(0)) * 3
    heat = boxes.heat_map(some_boxes(2, 4, seed=1), K, H, W, 0.7)
    p, y = 1 / (1 + np.exp(-logit.double().numpy())), heat.double().numpy()
    wanted = np.where(y == 1, -((1 - p) ** 2) * np.log(p), -((1 - y) ** 4) * p**2 * np.log(1 - p))
    np.testing.assert_allclose(boxes.focal_loss(logit, heat).numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_the_focal_loss_of_a_sure_network_is_finite() -> None:
    logit = torch.tensor([-200.0, 200.0], requires_grad=True)
    for heat in (torch.zeros(2), torch.ones(2)):
        loss = boxes.focal_loss(logit, heat).sum()
        (grad,) = torch.autograd.grad(loss, logit)
        assert loss.isfinite() and grad.isfinite().all()


def drawn(target: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What a perfect head would give for these boxes."""
    output = torch.full((len(target), K + 4, height, width), -9.0)
    there, column, row = boxes.cells(target, height, width)
    size = target[..., 2:4] - target[..., :2]
    inside = (target[..., :2] + target[..., 2:4]) / 2 * torch.tensor([width, height]) - torch.stack([column, row], -1)
    for picture, place in there.nonzero().tolist():
        y, x = int(row[picture, place]), int(column[picture, place])
        output[picture, int(target[picture, place, 4]), y, x] = 9.0
        output[picture, K : K + 2, y, x] = size[picture, place].logit(1e-6)
        output[picture, K + 2 :, y, x] = inside[picture, place].logit(1e-6)
    return output


def test_boxes_drawn_on_the_map_are_read_off_it_again() -> None:
    target = some_boxes(20, 1, seed=5)
    found = boxes.peaks(drawn(target, H, W), 3)
    there = target[:, 0, 4] >= 0
    torch.testing.assert_close(found[there, 0, :5], target[there, 0], atol=1e-3, rtol=0)
    assert (found[there, 0, 5] > 0.99).all()
    assert (found[:, 1:, 5] < 0.01).all() and (found[~there, :, 5] < 0.01).all()


def test_only_the_highest_of_neighbouring_cells_is_a_detection() -> None:
    output = torch.full((1, K + 4, H, W), -9.0)
    output[0, 1, 3, 3], output[0, 1, 3, 4], output[0, 2, 3, 4], output[0, 1, 3, 6] = 3.0, 2.0, 1.0, 0.0
    found = boxes.peaks(output, 5)[0]
    sure = found[found[:, 5] > 0.3]
    assert sure[:, 4].tolist() == [1, 2, 1]
    assert sure[:, 5].tolist() == pytest.approx([float(torch.tensor(x).sigmoid()) for x in (3.0, 1.0, 0.0)])


def test_an_untrained_head_sees_few_things_and_middling_boxes() -> None:
    torch.manual_seed(0)
    head = boxes.CentreHead(8, 6, K)
    output = head(torch.randn(2, 8, H, W)).detach()
    assert output.shape == (2, K + 4, H, W)
    assert output[:, :K].sigmoid().mean() == pytest.approx(0.1, abs=0.02)
    assert output[:, K : K + 2].sigmoid().mean() == pytest.approx(0.2, abs=0.03)


def test_a_head_on_a_vector_says_that_it_needs_a_map() -> None:
    with pytest.raises(LaunchError, match="not a map"):
        boxes.CentreHead(8, 6, K)(torch.randn(2, 8))
