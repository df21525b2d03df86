"""What every objective promises, of the one whose outputs are maps; and that it finds what it is shown."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer import boxes
from trainer.objectives.detection import Detection
from trainer.parts import Site

K, H, W = 4, 5, 6


def example(rows: int, missing: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs `[rows, K + 4, H, W]` with a gradient, and targets, some of them missing and some empty."""
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(rows, K + 4, H, W, generator=generator).requires_grad_()
    corner = torch.rand(rows, 3, 2, generator=generator) * 0.6
    side = 0.05 + torch.rand(rows, 3, 2, generator=generator) * 0.35
    kind = torch.randint(-1, K, (rows, 3, 1), generator=generator).float()
    target = torch.cat([corner, corner + side, kind], 2)
    target[torch.rand(rows, generator=generator) < missing] = math.nan
    return output, target


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 12), max_size=3).map(sorted), missing=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 9))
def test_sum_and_count_add_up_over_any_split_of_a_batch(cuts: list[int], missing: float, seed: int) -> None:
    objective, (output, target) = Detection(), example(12, missing, seed)
    parts = [(output[a:b], target[a:b]) for a, b in pairwise([0, *cuts, 12])]
    torch.testing.assert_close(sum(objective.total(o, t) for o, t in parts), objective.total(output, target))
    assert sum(float(objective.count(t)) for _, t in parts) == float(objective.count(target))


@pytest.mark.parametrize("missing", [0.0, 0.5, 1.0])
def test_pictures_nobody_looked_at_count_for_nothing_and_have_no_gradient(missing: float) -> None:
    objective, (output, target) = Detection(), example(20, missing)
    there = ~target[:, 0, 4].isnan()
    total = objective.total(output, target)
    total.backward()
    assert float(objective.count(target)) == int(there.sum())
    torch.testing.assert_close(total, objective.total(output[there], target[there]))
    assert output.grad is not None and output.grad.isfinite().all()
    assert (output.grad[~there] == 0).all()
    assert (output.grad[there] != 0).any() == bool(there.any())


def test_the_loss_of_a_picture_is_its_focal_loss_over_its_things_and_its_mean_box_loss() -> None:
    output, target = example(6, seed=2)
    wanted = 0.0
    for o, t in zip(output.detach(), target, strict=True):
        there = t[t[:, 4] >= 0]
        heat = boxes.heat_map(t[None], K, H, W, 0.7)
        wanted += float(boxes.focal_loss(o[None, :K], heat).sum()) / max(1, len(there))
        apart = []
        for left, top, right, bottom, _ in there.tolist():
            x, y = int((left + right) / 2 * W), int((top + bottom) / 2 * H)
            w, h, dx, dy = o[K:, y, x].sigmoid().tolist()
            box = torch.tensor([(x + dx) / W - w / 2, (y + dy) / H - h / 2, (x + dx) / W + w / 2, (y + dy) / H + h / 2])
            apart.append(float(boxes.giou_loss(box, torch.tensor([left, top, right, bottom]))))
        wanted += 3.0 * float(np.mean(apart)) if apart else 0.0
    assert Detection(box_weight=3.0).total(output, target).item() == pytest.approx(wanted, rel=1e-5)


def test_low_precision_outputs_give_a_float32_sum_and_detections() -> None:
    objective, (output, target) = Detection(), example(4)
    assert objective.total(output.bfloat16(), target).dtype == objective.count(target).dtype == torch.float32
    assert objective.predict(output.bfloat16()).dtype == torch.float32


def test_a_map_that_is_trained_on_boxes_finds_them() -> None:
    _, target = example(5, seed=4)
    objective, output = Detection(most=3), torch.zeros(5, K + 4, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([output], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        objective.total(output, target).backward()
        optimizer.step()
    found = objective.predict(output.detach())
    for rows, wanted in zip(found, target, strict=True):
        things = wanted[wanted[:, 4] >= 0]
        for thing in things:
            same = rows[(rows[:, 4] == thing[4]) & (rows[:, 5] > 0.5)]
            assert float(boxes.overlaps(same[:, :4], thing[:4].expand(len(same), 4))[0].max()) > 0.9
        assert int((rows[:, 5] > 0.5).sum()) == len(things)


def test_predictions_are_told_in_the_units_of_the_source() -> None:
    columns = {"things": {"classes": ["cat", "dog"], "size": [100, 200]}}
    scores = np.array([[[0.25, 0.5, 0.5, 1.0, 1, 0.75], [0, 0, 1, 1, 0, 0.05], [0, 0, 0, 0, 0, 0]], np.zeros((3, 6))])
    said = Detection().say(scores, columns, "things")
    assert said == [[{"box": [50.0, 50.0, 100.0, 100.0], "label": "dog", "score": 0.75}], []]
    assert len(Detection(least_score=0).say(scores, columns, "things")[0]) == 2


def test_the_head_is_as_wide_as_the_model_and_has_a_map_for_each_class() -> None:
    site = Site("things", "eye", ["picture"], "boxes", {"boxes": {"classes": list("abc")}}, {"eye": 8}, {})
    assert Detection(width=5).head(site)(torch.randn(2, 8, 3, 4)).shape == (2, 7, 3, 4)
