"""Which row is seen when does not depend on the number of ranks, also if it changes on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from training_cases import Garden, Ranks
from training_inputs import assert_close

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]  # the process groups start in whichever test comes first

Seen = dict[tuple[str, int], dict[str, list[float]]]


def seen(ranks: list[dict[str, Any]]) -> Seen:
    """Rows of each step, over all ranks, sorted."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for rank in ranks:
        for phase, step, rows in rank["rows"]:
            step_rows = found.setdefault((phase, step), {})
            for name, numbers in rows.items():
                step_rows[name] = sorted(step_rows.get(name, []) + numbers)
    return found


@pytest.fixture(scope="session")
def alone(garden: Garden) -> Seen:
    return seen([garden.alone("order", "order-alone")])


def test_two_and_three_ranks_see_the_rows_that_one_sees_at_each_step(alone: Seen, two: Ranks, three: Ranks) -> None:
    assert len(alone) == 4 * 14
    assert seen(two.said["order in two"][0]) == alone
    assert seen(three.said["order in three"][0]) == alone


def test_every_epoch_is_a_permutation(garden: Garden, alone: Seen) -> None:
    rows = garden.trained("order", "order-alone").result["data"]
    for phase in garden.specs["order"].phases:
        for name, entry in rows.items():
            steps = [alone[phase, step].get(name, []) for step in range(14)]
            count = Counter(row for step in steps for row in step)
            epochs, rest = divmod(sum(count.values()), entry["rows"]["train"])
            assert sorted(set(count.values()) | {epochs, epochs + 1}) == [epochs, epochs + 1]
            assert sum(n == epochs + 1 for n in count.values()) == rest


def test_another_number_of_ranks_goes_on_with_the_next_unseen_row(garden: Garden, alone: Seen, two: Ranks, three: Ranks) -> None:
    """Two ranks began, one went on, three finished."""
    begun, finished = two.said["order in chain"][0], three.said["order in chain"][0]
    assert "step 6 of 14 of phase 'all'" in begun[0]["stopped"]  # asked in step 4, counted from 0: heard by all in the next
    assert seen(begun) == {("all", step): alone["all", step] for step in range(6)}
    rest = seen(finished)
    assert min(rest, key=lambda place: (list(garden.specs["order"].phases).index(place[0]), place[1])) == ("proportional", 8)
    assert rest == {place: alone[place] for place in rest}
    assert_close(garden.trained("order", "chain").params, garden.trained("order", "order-alone").params)
    assert garden.trained("order", "chain").result["samples"] == garden.trained("order", "order-alone").result["samples"]
