"""What the steps of the pipeline pass on to one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import document, write_csv

from trainer import flow
from trainer.check import load_spec
from trainer.errors import CotrainError
from trainer.requests import read_request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "table.csv")
    return tmp_path


def start(folder: Path, **changes: Any) -> tuple[str, list[dict[str, Any]]]:
    """The root, and what the prepare steps pass on. As KFP hands it over, with floats for whole numbers."""
    made = document(**changes)
    made["data"]["table"]["uri"] = str(folder / "table.csv")
    root = str(folder / "runs")
    uri = flow.keep_spec(load_spec(made), root)
    return root, [{"spec": uri, "dataset": "table", "key": "k", "digest": "d", "rows": {"train": 282.0, "valid": 52.0, "test": 66.0}}]


def through_kfp(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items of a loop as the next step gets them: whole numbers become floats, and null is refused."""

    def struct(value: Any) -> Any:
        assert value is not None
        if isinstance(value, dict):
            return {name: struct(v) for name, v in value.items()}
        if isinstance(value, list):
            return [struct(v) for v in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return [struct(item) for item in items]


def test_every_step_reads_the_document_as_it_was_resolved(folder):
    root, (item,) = start(folder)
    (folder / "table.csv").unlink()  # later steps may run where the sources are not
    spec = load_spec(item["spec"], sources=False)
    assert spec.tasks["side"].metrics is not None
    assert flow.keep_spec(spec, root) == item["spec"]


def test_there_is_an_item_for_each_seed_and_for_each_baseline(folder):
    root, prepared = start(folder, seed=3, seeds=2)
    joint = through_kfp(flow.plan_runs(prepared, "joint", root))
    alone = through_kfp(flow.plan_runs(prepared, "independent", root))
    assert [(item["role"], item.get("task")) for item in joint] == [("joint", None)] * 2
    assert [item["task"] for item in alone] == ["side", "side", "size", "size"]
    for item in [*joint, *alone]:
        request = read_request(root, item["key"])
        assert request["seed"] == item["seed"] and isinstance(request["seed"], int)
        assert all(isinstance(phase["steps"], int) for phase in request["spec"]["phases"].values())


def test_scores_are_planned_by_seed_whatever_the_order_in_which_the_loops_end(folder):
    root, prepared = start(folder, seeds=3)
    joint = through_kfp(flow.plan_runs(prepared, "joint", root))
    alone = through_kfp(flow.plan_runs(prepared, "independent", root))
    planned = flow.plan_scores(prepared, joint[::-1], alone[::-1])
    assert [item["task"] for item in planned] == ["side", "size"]
    assert planned[0]["joint"] == [item["key"] for item in joint]
    assert planned[1]["independent"] == [item["key"] for item in alone if item["task"] == "size"]


def test_a_document_that_compares_with_nothing_has_one_item_without_a_key(folder):
    """KFP's local runner can't collect the outputs of a loop over nothing."""
    root, prepared = start(folder, compare={"independent": False})
    alone = through_kfp(flow.plan_runs(prepared, "independent", root))
    assert [item["key"] for item in alone] == [""]
    joint = flow.plan_runs(prepared, "joint", root)
    assert [item["independent"] for item in flow.plan_scores(prepared, joint, alone)] == [[], []]


def test_a_result_that_is_gone_is_told_with_its_place(folder):
    root, prepared = start(folder)
    item = {"spec": prepared[0]["spec"], "task": "side", "data": "k", "joint": ["gone"], "independent": []}
    with pytest.raises(CotrainError, match="results/train/gone is gone from"):
        flow.score_task(item, root)


def published(root: str, name: str, versions: dict[str, tuple[str, str | None]], champion: str) -> None:
    """Versions by name: the key of the run that made it, and the champion that it was compared with."""
    models = Path(root) / "models" / name
    for version, (key, before) in versions.items():
        folder = models / "versions" / version
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"train_key": key}))
        (folder / "metrics.json").write_text(json.dumps({"champion": before}))
    (models / "champion.json").write_text(json.dumps({"version": champion, "sha256": "", "promoted_at": ""}))


@pytest.mark.parametrize(
    ("judged", "versions", "champion", "against"),
    [
        ("new", {}, None, None),
        ("new", {"v1": ("old", None)}, "v1", "v1"),
        ("old", {"v1": ("old", None)}, "v1", None),
        ("new", {"v1": ("old", None), "v2": ("new", "v1")}, "v2", "v1"),
        ("new", {"v2": ("new", "v1")}, "v2", None),
    ],
    ids=["nothing is promoted", "another is", "it is itself", "it took over", "what it took over from is gone"],
)
def test_a_model_is_compared_with_the_champion_that_it_was_or_would_be_up_against(folder, judged, versions, champion, against):
    root, prepared = start(folder)
    spec = load_spec(prepared[0]["spec"], sources=False)
    if champion:
        published(root, spec.name, versions, champion)
    found = flow._promoted(spec, root, [judged])
    assert (found.rpartition("/")[2] if found else None) == against


def test_a_gate_that_says_no_leaves_the_reasons(folder, monkeypatch):
    root, prepared = start(folder)
    checks = [{"passed": True, "says": "fine"}, {"passed": False, "says": "side is worse"}]

    class Compared:
        def json(self, name: str) -> Any:
            return {"gate": {"passed": False, "checks": checks}}

    monkeypatch.setattr(flow, "_result", lambda *which: Compared())
    outcome, reused = flow.promote({"spec": prepared[0]["spec"], "key": "v"}, [{"joint": ["k"]}], root)
    assert outcome == {"published": "", "version": "", "promoted": False, "reasons": ["side is worse"]}
    assert not reused
    assert not (Path(root) / "models").exists()
