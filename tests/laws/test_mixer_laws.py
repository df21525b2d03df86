"""What every mixer promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.catalog import CATALOG, find
from trainer.parts import Mixer

MIXERS = [(kind, over) for kind in sorted(CATALOG["mixer"]) for over in ("datasets", "tasks") if kind != "all" or over == "datasets"]
ROWS = np.array([900, 900, 100, 400])
DATA = ["big", "big", "small", "middle"]

datasets = st.lists(st.integers(1, 10**7), min_size=1, max_size=4)


def make(kind: str, over: str, **options: Any) -> Mixer:
    return find("mixer", kind)(**options, **({"over": over} if "over" in find("mixer", kind).model_fields else {}))


def schedule(kind: str, over: str, steps: int, seed: int = 0, **options: Any) -> np.ndarray:
    return make(kind, over, **options).schedule(ROWS, DATA, steps, seed)


@pytest.mark.parametrize(("kind", "over"), MIXERS)
@settings(deadline=None, max_examples=40)
@given(sizes=datasets, doubled=st.booleans(), steps=st.integers(1, 300), seed=st.integers(0, 2**60 - 1))
def test_every_step_sees_a_task_and_a_longer_schedule_begins_like_a_shorter_one(
    kind: str, over: str, sizes: list[int], doubled: bool, steps: int, seed: int
) -> None:
    groups = [f"d{i}" for i in range(len(sizes))] * (1 + doubled)
    rows = np.array(sizes * (1 + doubled), dtype=np.int64)
    mixer = make(kind, over)
    found = mixer.schedule(rows, groups, steps, seed)
    assert found.shape == (steps, len(groups))
    assert found.dtype == bool
    assert found.any(1).all()
    assert (mixer.schedule(rows, groups, steps + 50, seed)[:steps] == found).all()
    assert (mixer.schedule(rows, groups, steps, seed) == found).all()


@pytest.mark.parametrize(("kind", "over"), MIXERS)
@settings(deadline=None, max_examples=40)
@given(sizes=datasets, epochs=st.floats(0.01, 50), batch=st.integers(1, 4096))
def test_steps_are_at_least_one_and_grow_with_epochs(kind: str, over: str, sizes: list[int], epochs: float, batch: int) -> None:
    groups, rows, mixer = [f"d{i}" for i in range(len(sizes))], np.array(sizes, dtype=np.int64), make(kind, over)
    steps = mixer.steps(rows, groups, epochs, batch)
    held = rows.max() if kind == "all" else rows.sum()
    assert steps == max(1, math.ceil(epochs * int(held) / batch))
    assert mixer.steps(rows, groups, 2 * epochs, batch) >= steps


@pytest.mark.parametrize(("kind", "over"), MIXERS)
def test_one_unit_a_step_and_datasets_bring_all_their_tasks(kind: str, over: str) -> None:
    found = schedule(kind, over, 500)
    if kind == "all":
        assert found.all()
    elif over == "tasks":
        assert (found.sum(1) == 1).all()
    else:
        assert {tuple(row) for row in found.tolist()} == {
            (True, True, False, False),
            (False, False, True, False),
            (False, False, False, True),
        }


def shares(found: np.ndarray) -> np.ndarray:
    return found.mean(0)


@pytest.mark.parametrize(
    ("kind", "over", "options", "expected"),
    [
        ("proportional", "datasets", {}, [900, 900, 100, 400]),
        ("proportional", "tasks", {}, [900, 900, 100, 400]),
        ("temperature", "datasets", {"temperature": 1.0}, [900, 900, 100, 400]),
        ("temperature", "datasets", {"temperature": 2.0}, [30, 30, 10, 20]),
        ("temperature", "tasks", {"temperature": 2.0}, [30, 30, 10, 20]),
        ("temperature", "datasets", {"temperature": 1e6}, [1, 1, 1, 1]),
        ("round_robin", "datasets", {}, [1, 1, 1, 1]),
        ("round_robin", "tasks", {}, [1, 1, 1, 1]),
    ],
)
def test_proportions_are_as_promised(kind: str, over: str, options: dict[str, Any], expected: list[int]) -> None:
    weight = np.array(expected, dtype=float)
    units = [0, 2, 3] if over == "datasets" else [0, 1, 2, 3]
    share = weight / weight[units].sum()
    steps = 20_000
    found = shares(schedule(kind, over, steps, **options))
    assert np.abs(found - share).max() < 4 * math.sqrt(0.25 / steps)  # four standard deviations
    assert np.abs(shares(schedule(kind, over, steps, seed=99, **options)) - share).max() < 4 * math.sqrt(0.25 / steps)


def test_taking_turns_is_exact() -> None:
    assert schedule("round_robin", "datasets", 6).argmax(1).tolist() == [0, 2, 3, 0, 2, 3]


@pytest.mark.parametrize("kind", ["proportional", "temperature"])
def test_another_seed_draws_another_schedule(kind: str) -> None:
    assert (schedule(kind, "datasets", 200, seed=1) != schedule(kind, "datasets", 200, seed=2)).any()
