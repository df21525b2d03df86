"""Which tasks to train together: what looks at task gradients, and the comparison with independent training, say of it.

A partition of the tasks into groups, a trunk each, is scored by the mean over tasks of a task's mean cosine with the others
of its group; a task alone counts 0, since nothing helps or hurts it there.

Source: Standley et al., Which Tasks Should Be Learned Together in Multi-task Learning?, ICML 2020, for the best partition
at a budget of inference; Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, NeurIPS 2021, for
affinities from one joint run in place of a run per group, averaged over a group. Their affinity is how much a step for one task
lowers the loss of another; the cosine says that to first order, for steps of one length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Any

from trainer.wording import cosine, decimals, many, number, share, span, value

Json = dict[str, Any]
Group = tuple[int, ...]
EXHAUSTIVE = 8
"""Up to so many tasks every partition is weighed; of more tasks the two groups that gain most are merged, again and again."""
_TOLD = 3
_GAIN = 1e-9


def advise(looks: Iterable[Json], verdict: Json, models: Mapping[str, str] | None = None) -> Json:
    """What looks at the task gradients say of training tasks together, beside what came of it.

    Args:
        looks: the records of history.jsonl with `"split": "look"`, of all seeds of joint training.
        verdict: verdict.json.
        models: the model of each task; tasks on different models never share a trunk. Default: one model for all.

    Returns:
        `looks`: how many there were.
        `tasks`: those seen, in the order of the verdict.
        `pairs`: of two tasks on one model, `{"tasks", "looks", "cosine", "spread", "conflicts", "kind"}`: the mean cosine over the
        looks that saw both, its standard deviation over them, the share of them with a cosine below 0 (null where undefined).
        The kind is `help` or `hurt` where the mean is farther from 0 than the spread, else `unclear`; `unseen` without a look.
        `budgets`: `{"trunks", "groups", "score"}`, the best partition into at most so many groups, for each possible number.
        `hurt`: tasks that the verdict calls worse than independent training, `{"task", "partner", "cosine"}`: with the task they
        conflict with most, null where they conflict with none on average.
        `says`: all that in sentences.
    """
    looks, models = list(looks), models or {}
    seen = {task for look in looks for task in look.get("cosine") or {}}
    tasks = [*(task for task in verdict["tasks"] if task in seen), *sorted(seen - set(verdict["tasks"]))]
    pairs = [_pair(looks, a, b) for a, b in combinations(tasks, 2) if models.get(a) == models.get(b)]
    hurt = [_conflict(task, pairs) for task, entry in verdict["tasks"].items() if _compared(entry) == "worse"]
    found: Json = {"looks": len(looks), "tasks": tasks, "pairs": pairs, "budgets": [], "hurt": hurt}
    if not looks:
        return found | {"says": ["Nobody looked at the gradients of the tasks. A phase with probe_every in its balancer does."]}
    found["budgets"] = _budgets(tasks, pairs)
    return found | {"says": [*_told(pairs), *_harm(found, verdict), *_worth(found)]}


def _pair(looks: Sequence[Json], a: str, b: str) -> Json:
    found = [x for look in looks if isfinite(x := number(((look.get("cosine") or {}).get(a) or {}).get(b)))]
    if not found:
        return {"tasks": [a, b], "looks": 0, "cosine": None, "spread": None, "conflicts": None, "kind": "unseen"}
    mean, spread = fmean(found), stdev(found) if len(found) > 1 else None
    kind = "unclear" if spread is None or abs(mean) <= spread else "help" if mean > 0 else "hurt"
    return {"tasks": [a, b], "looks": len(found), "cosine": mean, "spread": spread, "conflicts": fmean(x < 0 for x in found), "kind": kind}


def _compared(entry: Json) -> str | None:
    return (entry.get("vs_independent") or {}).get("verdict")


def _conflict(task: str, pairs: Sequence[Json]) -> Json:
    """The task with the one that it conflicts with most, on average."""
    own = [pair for pair in pairs if task in pair["tasks"] and (pair["cosine"] or 0) < 0]
    worst = min(own, key=lambda pair: pair["cosine"], default=None)
    if worst is None:
        return {"task": task, "partner": None, "cosine": None}
    return {"task": task, "partner": next(other for other in worst["tasks"] if other != task), "cosine": worst["cosine"]}


# --- partitions --------------------------------------------------------------------------------------------------


def _budgets(tasks: Sequence[str], pairs: Sequence[Json]) -> list[Json]:
    """The best partition for each number of trunks that there can be; a trunk more is only used where that raises the score."""
    # two tasks that no step had both of neither help nor hurt, as far as is known; those without a pair are on different models
    known = {frozenset(pair["tasks"]): pair["cosine"] or 0.0 for pair in pairs}
    table = [[known.get(frozenset((a, b)), -inf) for b in tasks] for a in tasks]
    best = (_exhaustively if len(tasks) <= EXHAUSTIVE else _greedily)(table)
    return [
        {"trunks": k, "groups": [[tasks[i] for i in group] for group in sorted(groups)], "score": score / len(tasks)}
        for k, (score, groups) in enumerate(best, 1)
        if score > -inf
    ]


def _score(group: Group, table: Sequence[Sequence[float]]) -> float:
    """Sum over the tasks of a group of their mean cosine with the others."""
    return 2 * sum(table[i][j] for i, j in combinations(group, 2)) / max(len(group) - 1, 1)


def _exhaustively(table: Sequence[Sequence[float]]) -> list[tuple[float, list[Group]]]:
    """The best of all partitions into at most 1, 2, ... T groups, and its score."""

    @cache
    def best(left: Group, k: int) -> tuple[float, list[Group]]:
        """Of the tasks left; the group of the first of them is tried in every way."""
        if not left or not k:
            return (-inf if left else 0.0), []
        found = best(left, k - 1)
        for size in range(len(left)):
            for others in combinations(left[1:], size):
                group = (left[0], *others)
                score, groups = best(tuple(i for i in left if i not in group), k - 1)
                score += _score(group, table)
                if score > found[0] + _GAIN:
                    found = score, [group, *groups]
        return found

    return [best(tuple(range(len(table))), k) for k in range(1, len(table) + 1)]


def _greedily(table: Sequence[Sequence[float]]) -> list[tuple[float, list[Group]]]:
    """The same by merging the two groups that gain most (or lose least), from single tasks on: good, not always the best."""
    groups: list[Group] = [(i,) for i in range(len(table))]
    reached = [(0.0, list(groups))]
    while len(groups) > 1:
        a, b = max(combinations(groups, 2), key=lambda ab: _score(ab[0] + ab[1], table) - _score(ab[0], table) - _score(ab[1], table))
        groups = [*(group for group in groups if group not in (a, b)), tuple(sorted(a + b))]
        reached.append((sum(_score(group, table) for group in groups), list(groups)))
    best: list[tuple[float, list[Group]]] = []
    for now in reversed(reached):
        best.append(now if not best or now[0] > best[-1][0] + _GAIN else best[-1])
    return best


# --- sentences ---------------------------------------------------------------------------------------------------


def _told(pairs: Sequence[Json]) -> Iterable[str]:
    """The pairs that clearly help and hurt each other, the strongest first."""
    for kind, verb, sign in (("help", "seem to help each other", -1), ("hurt", "seem to hurt each other", 1)):
        found = sorted((pair for pair in pairs if pair["kind"] == kind), key=lambda pair: sign * pair["cosine"])
        for pair in found[:_TOLD]:
            numbers = f"mean cosine {cosine(pair['cosine'])}, spread {value(pair['spread'], 2)}"
            below = f"below 0 in {share(pair['conflicts'])} of {many(pair['looks'], 'look')}"
            yield f"{' and '.join(pair['tasks'])} {verb}: {numbers}, {below}."
        if found[_TOLD:]:
            yield f"The same goes, less strongly, for {many(len(found) - _TOLD, 'more pair')}."
    if any(pair["looks"] == 1 for pair in pairs):
        yield "One look has no spread, so nothing is clear of two tasks that were seen together once."
    elif pairs and all(pair["kind"] == "unclear" for pair in pairs):
        yield "No two tasks clearly help or hurt each other: every mean cosine is nearer to 0 than its spread over the looks."
    unseen = [pair for pair in pairs if pair["kind"] == "unseen"]
    if unseen:
        first = " and ".join(unseen[0]["tasks"]) + (", ..." if unseen[1:] else "")
        yield f"Of {many(len(unseen), 'pair')} nothing is known, since no step that was looked at had both tasks: {first}."


def _harm(found: Json, verdict: Json) -> Iterable[str]:
    """What the comparison with independent training says beside the cosines."""
    for hurt in found["hurt"]:
        entry = verdict["tasks"][hurt["task"]]
        by = entry["vs_independent"]
        places = decimals(number(by.get("high")) - number(by.get("low")))
        difference, interval = value(by.get("difference"), places, sign=True), span(by.get("low"), by.get("high"), places, sign=True)
        says = f"{hurt['task']} did worse jointly than alone ({entry['metric']} {difference}, {interval})."
        if hurt["task"] not in found["tasks"]:
            yield f"{says} No look saw it."
        elif hurt["partner"] is None:
            yield f"{says} It conflicts with no other on average, so look elsewhere first: its weight, the size of the trunk, the steps."
        else:
            parted = next((b["trunks"] for b in found["budgets"] if not _together(b, hurt["task"], hurt["partner"])), None)
            cure = f"; with {many(parted, 'trunk')} they are apart" if parted else ""
            yield f"{says} It conflicts most with {hurt['partner']} (mean cosine {cosine(hurt['cosine'])}){cure}."
    against = {task for pair in found["pairs"] if pair["kind"] == "hurt" for task in pair["tasks"]}
    helped = [task for task, entry in verdict["tasks"].items() if task in against and _compared(entry) == "better"]
    if helped:
        yield f"Conflict is not yet harm: {', '.join(helped)} did better jointly than alone all the same."


def _together(budget: Json, *tasks: str) -> bool:
    return any(set(tasks) <= set(group) for group in budget["groups"])


def _worth(found: Json) -> Iterable[str]:
    """Whether anything speaks for another trunk, and what all this is worth."""
    conflicts = [pair["tasks"] for pair in found["pairs"] if (pair["cosine"] or 0) < 0]
    fewest = found["budgets"][0]["trunks"]
    if not conflicts:
        yield f"No two tasks conflict on average: nothing in the gradients asks for more than {many(fewest, 'trunk')}."
    else:
        free = next((b for b in found["budgets"] if not any(_together(b, *pair) for pair in conflicts)), None)
        if free:
            yield f"With {many(free['trunks'], 'trunk')} no two tasks that conflict on average share one."
    yield (
        "Cosines are evidence, not proof: they hold to first order, on the path of this run. "
        "A grouping is judged by training it, with a model per group in the document."
    )
