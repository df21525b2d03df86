"""What looks at task gradients say of training tasks together."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from trainer.grouping import EXHAUSTIVE, _exhaustively, _greedily, advise


def look(**pairs: float | None) -> dict:
    """A look at tasks of one letter: `look(ab=0.5)`."""
    cosine: dict[str, dict[str, float | None]] = {}
    for (a, b), value in pairs.items():
        for one, other in ((a, b), (b, a)):
            cosine.setdefault(one, {one: 1.0})[other] = value
    return {"split": "look", "phase": "joint", "step": 1, "cosine": cosine, "faithful": 1.0, "worse": 0.0}


def verdict(**judged: str) -> dict:
    found = {"better": (0.02, 0.01, 0.03), "worse": (-0.031, -0.05, -0.012), "same": (0.0, -0.01, 0.01)}
    return {
        "tasks": {
            task: {
                "metric": "accuracy",
                "vs_independent": {"verdict": word} | dict(zip(("difference", "low", "high"), found[word], strict=True)),
            }
            for task, word in judged.items()
        }
    }


def groups(advice: dict, trunks: int) -> list[list[str]]:
    return next(budget["groups"] for budget in advice["budgets"] if budget["trunks"] == trunks)


def partitions(tasks: list[int]):
    """Every partition of a list."""
    if not tasks:
        yield []
        return
    first, *rest = tasks
    for size in range(len(tasks)):
        for others in combinations(rest, size):
            for more in partitions([t for t in rest if t not in others]):
                yield [(first, *others), *more]


def scored(partition, table) -> float:
    """The score as the module's docstring defines it, task by task."""
    return sum(sum(table[t][o] for o in group if o != t) / (len(group) - 1) for group in partition if len(group) > 1 for t in group)


def random_table(size: int, seed: int) -> list[list[float]]:
    rng = random.Random(seed)
    table = [[0.0] * size for _ in range(size)]
    for i, j in combinations(range(size), 2):
        table[i][j] = table[j][i] = rng.uniform(-1, 1)
    return table


@pytest.mark.parametrize("seed", range(4))
def test_no_partition_within_the_budget_scores_higher_than_the_one_advised(seed):
    table = random_table(6, seed)
    for k, (score, found) in enumerate(_exhaustively(table), 1):
        wanted = max(scored(partition, table) for partition in partitions(list(range(6))) if len(partition) <= k)
        assert score == pytest.approx(wanted)
        assert scored(found, table) == pytest.approx(wanted)
        assert sorted(task for group in found for task in group) == list(range(6))
        assert len(found) <= k


@pytest.mark.parametrize("size", [5, 12, 20])
def test_merging_gives_a_partition_for_every_budget_that_never_gets_worse_with_more_trunks(size):
    table = random_table(size, 1)
    found = _greedily(table)
    assert len(found) == size
    for k, (score, partition) in enumerate(found, 1):
        assert sorted(task for group in partition for task in group) == list(range(size))
        assert len(partition) <= k
        assert score == pytest.approx(scored(partition, table))
    scores = [score for score, _ in found]
    assert scores == sorted(scores)


@pytest.mark.parametrize("size", [EXHAUSTIVE, EXHAUSTIVE + 4])
def test_two_families_are_told_apart_whether_all_partitions_are_weighed_or_not(size):
    tasks = "abcdefghijklmnop"[:size]
    pairs = {a + b: 0.5 if (tasks.index(a) - tasks.index(b)) % 2 == 0 else -0.3 for a, b in combinations(tasks, 2)}
    advice = advise([look(**pairs)], verdict(**dict.fromkeys(tasks, "same")))
    assert groups(advice, 1) == [list(tasks)]
    assert groups(advice, 2) == [list(tasks[::2]), list(tasks[1::2])] == groups(advice, size)
    assert "With 2 trunks no two tasks that conflict on average share one." in advice["says"]


def test_a_pair_is_summed_up_over_the_looks_that_saw_both():
    looks = [look(ab=0.3, ac=-0.5), look(ab=0.5, ac=-0.3), look(ab=-0.2, ac=-0.4), look(bc=0.1), look(bc=-0.1)]
    ab, ac, bc = advise(looks, verdict(a="same", b="same", c="same"))["pairs"]
    assert (ab["looks"], ac["looks"], bc["looks"]) == (3, 3, 2)
    assert ab["cosine"] == pytest.approx(0.2)
    assert ab["conflicts"] == pytest.approx(1 / 3)
    assert ac["spread"] == pytest.approx(0.1)
    assert [pair["kind"] for pair in (ab, ac, bc)] == ["unclear", "hurt", "unclear"]


def test_sentences_name_who_helps_and_who_hurts_with_the_numbers():
    says = advise([look(ab=0.3, ac=-0.5, bc=0.01), look(ab=0.5, ac=-0.3, bc=-0.03)], verdict(a="same", b="same", c="same"))["says"]
    assert says[0] == "a and b seem to help each other: mean cosine +0.40, spread 0.14, below 0 in 0\xa0% of 2 looks."
    assert says[1] == "a and c seem to hurt each other: mean cosine −0.40, spread 0.14, below 0 in 100\xa0% of 2 looks."
    assert says[-1].startswith("Cosines are evidence, not proof")


def test_one_look_makes_nothing_clear():
    advice = advise([look(ab=-0.9)], verdict(a="same", b="same"))
    assert advice["pairs"][0]["kind"] == "unclear"
    assert not [says for says in advice["says"] if "hurt each other" in says]
    assert "One look has no spread" in advice["says"][0]


def test_a_task_that_joint_training_hurt_is_named_with_the_one_that_conflicts_with_it_most():
    looks = [look(ab=-0.1, ac=-0.4, bc=0.3), look(ab=-0.2, ac=-0.5, bc=0.4)]
    advice = advise(looks, verdict(a="worse", b="better", c="better"))
    assert advice["hurt"] == [{"task": "a", "partner": "c", "cosine": pytest.approx(-0.45)}]
    told = next(says for says in advice["says"] if says.startswith("a did worse"))
    assert told.startswith("a did worse jointly than alone (accuracy −0.031, −0.050 … −0.012).")
    assert told.endswith("It conflicts most with c (mean cosine −0.45); with 2 trunks they are apart.")
    assert "Conflict is not yet harm: b, c did better jointly than alone all the same." in advice["says"]


def test_harm_without_conflict_is_not_blamed_on_another_task():
    advice = advise([look(ab=0.2), look(ab=0.3)], verdict(a="worse", b="same", z="worse"))
    assert advice["hurt"][0] == {"task": "a", "partner": None, "cosine": None}
    assert "It conflicts with no other on average, so look elsewhere first" in next(
        says for says in advice["says"] if says.startswith("a did worse")
    )
    assert next(says for says in advice["says"] if says.startswith("z did worse")).endswith("No look saw it.")
    assert "No two tasks conflict on average: nothing in the gradients asks for more than 1 trunk." in advice["says"]


def test_tasks_that_no_step_saw_together_are_called_unknown():
    advice = advise([look(ab=0.2, cd=0.3), look(ab=0.3, cd=0.2)], verdict(a="same", b="same", c="same", d="same"))
    assert [pair["kind"] for pair in advice["pairs"]] == ["help", "unseen", "unseen", "unseen", "unseen", "help"]
    assert [says for says in advice["says"] if says.startswith("Of 4 pairs nothing is known")]
    assert groups(advice, 2) == [["a", "b"], ["c", "d"]]


def test_tasks_on_different_models_never_share_a_trunk():
    models = {"a": "m", "b": "n", "c": "m", "d": "n"}
    advice = advise([look(ab=0.9, ac=0.1, ad=0.9, bc=0.9, bd=0.2, cd=0.9)] * 2, verdict(**dict.fromkeys("abcd", "same")), models)
    assert [pair["tasks"] for pair in advice["pairs"]] == [["a", "c"], ["b", "d"]]
    assert [budget["trunks"] for budget in advice["budgets"]] == [2, 3, 4]
    assert groups(advice, 2) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize("broken", [float("nan"), None, float("inf")])
def test_a_cosine_that_is_not_defined_counts_for_nothing(broken):
    advice = advise([look(ab=broken), look(ab=0.25)], verdict(a="same", b="same"))
    assert (advice["pairs"][0]["looks"], advice["pairs"][0]["cosine"]) == (1, 0.25)


def test_without_a_look_it_says_what_would_give_one():
    advice = advise([], verdict(a="worse", b="same"))
    assert (advice["looks"], advice["pairs"], advice["budgets"]) == (0, [], [])
    assert "probe_every" in advice["says"][0]
