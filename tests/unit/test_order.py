from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.order import Order, permute, share

keys = st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6).map(lambda k: np.array(k, dtype=np.uint64))


@settings(deadline=None, max_examples=100)
@given(n=st.integers(1, 3000), key=keys)
def test_a_permutation_hits_every_row_once(n: int, key: np.ndarray) -> None:
    image = permute(np.arange(n, dtype=np.uint64), n, key)
    assert image.dtype == np.int64
    assert sorted(image.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1023, 1024, 1025, 4096, 65_537])
def test_a_permutation_hits_every_row_once_around_powers_of_two(n: int) -> None:
    key = np.arange(6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert (np.sort(permute(np.arange(n, dtype=np.uint64), n, key)) == np.arange(n)).all()


@pytest.mark.parametrize("n", [2, 3, 5, 8, 37])
def test_every_row_is_as_likely_at_every_place(n: int) -> None:
    draws = 4000
    count = np.zeros((n, n))
    orders = Order(n, 0, "x").take(0, n * draws).reshape(draws, n)
    for place in range(n):
        count[place] = np.bincount(orders[:, place], minlength=n)
    expected = draws / n
    assert np.abs(count - expected).max() < 5 * np.sqrt(expected * (1 - 1 / n))  # five standard deviations


@pytest.mark.parametrize("n", [3, 4])
def test_every_order_of_a_few_rows_comes_up(n: int) -> None:
    found = Counter(map(tuple, Order(n, 0, "x").take(0, 3000 * n).reshape(3000, n).tolist()))
    assert len(found) == {3: 6, 4: 24}[n]
    assert max(found.values()) < 2 * min(found.values())


def test_neighbours_are_not_neighbours_after() -> None:
    """In a random order of n rows two pairs of neighbours stay so, on average, whatever n is."""
    orders = Order(2000, 0, "x").take(0, 2000 * 200).reshape(200, 2000)
    assert 1.6 < (np.abs(np.diff(orders, axis=1)) == 1).sum(1).mean() < 2.4


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 200), start=st.integers(0, 2000), count=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_any_place_of_the_stream_can_be_asked_for(rows: int, start: int, count: int, seed: int) -> None:
    stream = Order(rows, seed, "x")
    whole = Order(rows, seed, "x").take(0, start + count)
    assert (stream.take(start, count) == whole[start:]).all()
    assert (stream.take(0, start + count) == whole).all()  # back again


def test_a_stream_goes_on_over_the_blocks_it_is_made_in() -> None:
    stream, batch = Order(1000, 7, "x"), 333
    rows = [stream.take(step * batch, batch) for step in range(250)]
    assert (np.concatenate(rows) == Order(1000, 7, "x").take(0, 250 * batch)).all()


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 300), epochs=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_each_epoch_is_a_permutation(rows: int, epochs: int, seed: int) -> None:
    taken = Order(rows, seed, "x").take(0, rows * epochs).reshape(epochs, rows)
    assert (np.sort(taken, 1) == np.arange(rows)).all()


def test_epochs_seeds_and_datasets_have_orders_of_their_own() -> None:
    first, second = Order(500, 1, "a").take(0, 1000).reshape(2, 500)
    others = [Order(500, 2, "a").take(0, 500), Order(500, 1, "b").take(0, 500), second]
    assert all((first == other).sum() < 10 for other in others)


def test_an_order_needs_a_row() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Order(0, 0, "x")


@given(count=st.integers(0, 10_000), parts=st.integers(1, 64))
def test_shares_are_disjoint_whole_and_nearly_equal(count: int, parts: int) -> None:
    shares = [share(count, parts, part) for part in range(parts)]
    assert [row for part in shares for row in range(count)[part]] == list(range(count))
    sizes = {part.stop - part.start for part in shares}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1 or count < parts
