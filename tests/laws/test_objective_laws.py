"""What every objective promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from trainer.catalog import CATALOG, find
from trainer.parts import Objective

OBJECTIVES = sorted(kind for kind in CATALOG["objective"] if not find("objective", kind).wide and not find("objective", kind).takes_maps)
"""Plain ones on vectors: of those on maps `test_detection_laws.py` tells, of the wide `test_wide_objective_laws.py`."""
CLASSES = 5
REFERENCE = {
    "cross_entropy": functional.cross_entropy,
    "mse": lambda output, target: functional.mse_loss(output[:, 0], target),
    "l1": lambda output, target: functional.l1_loss(output[:, 0], target),
}


def example(kind: str, rows: int, missing: float = 0.0, seed: int = 0) -> tuple[Objective, Tensor, Tensor]:
    """An objective, head outputs `[rows, K]` with a gradient, and targets some of which are missing."""
    objective = find("objective", kind)()
    (column,) = objective.targets
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(rows, objective.outputs({"classes": list(range(CLASSES))}), generator=generator).requires_grad_()
    absent = torch.rand(rows, generator=generator) < missing
    if column == "category":
        target = torch.randint(CLASSES, (rows,), generator=generator).masked_fill(absent, -1)
    else:
        target = torch.randn(rows, generator=generator).masked_fill(absent, math.nan)
    return objective, output, target


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_it_is_what_torch_says(kind: str) -> None:
    objective, output, target = example(kind, 12)
    torch.testing.assert_close(objective.total(output, target) / objective.count(target), REFERENCE[kind](output, target))


@pytest.mark.parametrize("kind", OBJECTIVES)
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 20), max_size=4).map(sorted), missing=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 9))
def test_sum_and_count_add_up_over_any_split_of_a_batch(kind: str, cuts: list[int], missing: float, seed: int) -> None:
    objective, output, target = example(kind, 20, missing, seed)
    edges = [0, *cuts, 20]
    parts = [(output[a:b], target[a:b]) for a, b in pairwise(edges)]
    torch.testing.assert_close(sum(objective.total(o, t) for o, t in parts), objective.total(output, target))
    assert sum(float(objective.count(t)) for _, t in parts) == float(objective.count(target))


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
def test_rows_without_a_target_count_for_nothing_and_have_no_gradient(kind: str, missing: float) -> None:
    objective, output, target = example(kind, 30, missing)
    there = ~target.isnan() if target.is_floating_point() else target >= 0
    total = objective.total(output, target)
    total.backward()
    assert float(objective.count(target)) == int(there.sum())
    torch.testing.assert_close(total, objective.total(output[there], target[there]))
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert (output.grad[~there] == 0).all()
    assert (output.grad[there] != 0).any() == bool(there.any())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_low_precision_outputs_give_a_float32_sum(kind: str) -> None:
    objective, output, target = example(kind, 8)
    total = objective.total(output.bfloat16(), target)
    assert total.dtype == objective.count(target).dtype == torch.float32
    assert total.shape == objective.count(target).shape == ()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_predictions_are_probabilities_of_classes_or_values_of_numbers(kind: str) -> None:
    objective, output, _ = example(kind, 8)
    score = objective.predict(output.bfloat16())
    assert score.dtype == torch.float32
    if "category" in objective.targets:
        assert score.shape == (8, CLASSES)
        torch.testing.assert_close(score.sum(1), torch.ones(8))
        assert (score.argmax(1) == output.bfloat16().argmax(1)).all()
    else:
        assert score.shape == (8,)


def test_label_smoothing_is_that_of_torch_over_rows_that_count() -> None:
    objective = find("objective", "cross_entropy")(label_smoothing=0.2)
    _, output, target = example("cross_entropy", 20, 0.3)
    there = target >= 0
    expected = functional.cross_entropy(output[there], target[there], label_smoothing=0.2, reduction="sum")
    torch.testing.assert_close(objective.total(output, target), expected)
