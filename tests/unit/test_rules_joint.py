"""What `check` says of documents whose tasks read models and each other."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from trainer.check import load_spec
from trainer.errors import SpecError

IMAGE = {"kind": "image", "shape": [1, 8, 8], "range": [0, 16]}
DOCUMENT: dict[str, Any] = {
    "name": "many",
    "data": {"few": {"kind": "digits", "rows": [0, 700]}, "rest": {"kind": "digits", "columns": {"image": IMAGE}}, "scenes": "captioned_digits"},
    "models": {"one": "mlp", "two": {"kind": "mlp", "hidden": [8]}, "vision": "conv", "language": "text_transformer"},
    "tasks": {
        "a": {"data": "few", "model": "one", "input": "image", "target": "digit"},
        "b": {"data": "few", "model": "two", "input": "image", "target": "digit"},
        "hears": {"data": "few", "objective": {"kind": "mutual_kl", "learner": "a", "peers": ["b"]}},
        "reads": {"data": "rest", "objective": {"kind": "cross_teach", "learner": "a", "teachers": ["b"]}},
        "both": {"data": "few", "objective": {"kind": "ensemble", "members": ["a", "b"]}, "target": "digit"},
        "match": {"data": "scenes", "objective": {"kind": "info_nce", "left": {"model": "vision", "input": "image"},
                                                  "right": {"model": "language", "input": "caption"}}},
        "answer": {"data": "scenes", "objective": {"kind": "fused", "encoders": {"image": "vision", "caption": "language"}}, "target": "answer"},
    },
    "phases": {"first": {"tasks": ["a", "b", "hears", "reads", "both"], "steps": 2}, "second": {"tasks": ["match", "answer"], "steps": 2}},
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """The document with values put at dotted paths; None removes what is there."""
    document = deepcopy(DOCUMENT)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = document
        for key in parents:
            node = node[key]
        if value is None:
            del node[last]
        else:
            node[last] = value
    return document


def test_the_document_is_sound_and_says_what_is_judged_and_what_learns() -> None:
    spec = load_spec(DOCUMENT)
    assert spec.judged_tasks == ["a", "b", "both", "match", "answer"]
    assert spec.learning("first") == ({"one", "two"}, {"a", "b", "hears", "reads", "both"})
    assert spec.learning("second") == ({"vision", "language"}, {"match", "answer"})
    assert spec.reads("both") == ["a", "b", "both"]
    assert spec.columns("reads") == (["image"], [])
    assert spec.kept("heads.a.weight") and not spec.kept("heads.hears.weight")
    assert load_spec(spec.to_json()) == spec


def test_members_come_along_when_an_ensemble_is_trained_alone() -> None:
    from trainer.plan import independent

    spec = load_spec(changed(tasks__both__objective={"kind": "ensemble", "members": ["a", "b"], "learn": True}))
    alone = independent(spec, "both", {"few": 400, "rest": 900, "scenes": 900}, 0)
    assert list(alone.tasks) == ["a", "b", "both"]
    assert set(alone.models) == {"one", "two"} and list(alone.data) == ["few"]
    assert not alone.tasks["both"].objective.learn  # type: ignore[union-attr]
    assert list(independent(spec, "a", {"few": 400, "rest": 900, "scenes": 900}, 0).tasks) == ["a"]


@pytest.mark.parametrize(("changes", "place", "finding"), [
    ({"tasks__a__model": None}, "tasks.a.model", "is missing"),
    ({"tasks__both__target": None}, "tasks.both.target", "is missing"),
    ({"tasks__hears__target": "digit"}, "tasks.hears.target", "objective 'mutual_kl' takes no target"),
    ({"tasks__match__model": "vision"}, "tasks.match.model", "objective 'info_nce' says itself which models see which columns"),
    ({"tasks__hears__metrics": ["accuracy"]}, "tasks.hears.metrics[0]", "predicts nothing that metric 'accuracy' could judge"),
    ({"tasks__match__metrics": ["accuracy"]}, "tasks.match.metrics[0]", "is not made for predictions of kind pairs"),
    ({"tasks__a__metrics": ["recall_left_to_right"]}, "tasks.a.metrics[0]", "is not made for 'digit', a category"),
    ({"tasks__hears__objective__peers": ["c"]}, "tasks.hears.objective", "no task is called 'c'"),
    ({"tasks__hears__objective__peers": ["both"]}, "tasks.hears.objective", "reads task 'both', whose objective 'ensemble' has no head output"),
    ({"tasks__hears__data": "scenes"}, "tasks.hears.objective", None),
    ({"tasks__b__target": "ink"}, "tasks.hears.objective", "predicts the number 'ink', and objective 'mutual_kl' compares classes"),
    ({"tasks__match__objective__left": {"model": "sight", "input": "image"}}, "tasks.match.objective", "no model is called 'sight'"),
    ({"tasks__match__objective__left": {"model": "vision", "input": "picture"}}, "tasks.match.objective", "has no column 'picture'"),
    ({"tasks__match__objective__left": {"model": "vision", "input": "caption"}}, "tasks.match.objective", "can't take column 'caption' of kind text"),
    ({"phases__first__balancer": "mgda"}, "phases.first.balancer", "task 'hears' (mutual_kl) reads several"),
    ({"phases__first__syncs": [{"kind": "ema", "of": "vision"}]}, "phases.first.syncs[0]", "no model that learns here is called 'vision'"),
    ({"rounds": 3, "train": {"early_stop": {}}}, "train.early_stop", "phases take turns in 3 rounds"),
    ({"rounds": 3, "phases__second": {"tasks": ["a", "match", "answer"], "steps": 1}}, "phases.second.train", "trains one, as phase 'first' does"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], place: str, finding: str | None) -> None:
    if finding is None:  # pictures of two digits are no pictures of one, but both are pictures: left to the models
        load_spec(changed(**changes))
        return
    with pytest.raises(SpecError) as refused:
        load_spec(changed(**changes))
    faults = {fault.place.removeprefix("document: "): fault for fault in refused.value.faults}
    assert place in faults, list(faults)
    assert finding in faults[place].finding


def test_fields_are_told_by_the_names_that_documents_use() -> None:
    sides = DOCUMENT["tasks"]["match"]["objective"]
    with pytest.raises(SpecError) as refused:
        load_spec(changed(tasks__match__objective={**sides, "los": "sigmoid"}))
    (fault,) = refused.value.faults
    assert fault.remedy.startswith("did you mean 'loss'? known: "), fault.remedy


def test_a_gradient_of_a_gradient_is_refused_where_parameters_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.objectives.mutual_kl import MutualKl

    monkeypatch.setattr(MutualKl, "double_backward", True)
    load_spec(changed(train={"zero": 2}))
    with pytest.raises(SpecError, match="differentiates a gradient, which ZeRO stage 3 can't do"):
        load_spec(changed(train={"zero": 3}))
