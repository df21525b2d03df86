"""What a run is given and leaves: settings into overrides, digests and marks of what is to be prepared, outcomes by key and by run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import document, write_csv
from finished import finished

from components.parameters import AS_WRITTEN, SETTINGS, overrides
from trainer import outcomes
from trainer.check import load_spec
from trainer.errors import SpecError
from trainer.flow import prepare_item, start
from trainer.stores import open_store


@pytest.fixture
def given(tmp_path: Path) -> str:
    write_csv(tmp_path / "table.csv", rows=60)
    made = document()
    made["data"]["table"]["uri"] = str(tmp_path / "table.csv")
    return json.dumps(made)


def test_every_setting_reaches_the_field_it_names(given):
    values = {
        "train_seeds": "3", "train_precision": "bf16", "train_zero_stage": "2", "cluster_launcher": "job", "cluster_nodes": "4",
        "cluster_gpus_per_node": "8", "cluster_queue": "night",
    }  # fmt: skip
    assert set(values) == set(SETTINGS)
    changed = load_spec(given, [*overrides(values), "train.batch=32"], sources=False)
    for name, value in values.items():
        found: Any = changed
        for part in SETTINGS[name].path.split("."):
            found = getattr(found, part)
        assert str(found) == value


@pytest.mark.parametrize("value", ["", " ", AS_WRITTEN])
def test_what_is_left_as_written_is_no_override(value):
    assert overrides(dict.fromkeys(SETTINGS, value), ["train.batch=7"]) == ["train.batch=7"]


@pytest.mark.parametrize(("name", "value"), [("cluster_nodes", "many"), ("train_seeds", "0"), ("cluster_gpus_per_node", "-1")])
def test_a_setting_that_makes_no_sense_is_told_by_its_field(name, value, given):
    with pytest.raises(SpecError, match=f"--set {SETTINGS[name].path}: "):
        load_spec(given, overrides({name: value}), sources=False)


@pytest.mark.parametrize("value", ["no", "1e3", "[a]", "a: b", "null"])
def test_text_stays_text(value, given):
    assert load_spec(given, overrides({"cluster_queue": value}), sources=False).cluster.queue == value


def test_what_is_to_be_prepared_is_known_by_the_digest_of_its_source(given, tmp_path):
    root = str(tmp_path / "runs")
    (item,) = start(given, root, [])
    assert item["source"] == load_spec(given).data["table"].fingerprint()
    (same,) = start(given, root, [])
    assert {**item, "made": ""} == {**same, "made": ""}
    with (tmp_path / "table.csv").open("a") as file:
        file.write("0.5,0.5,left,1.0\n")
    (changed,) = start(given, root, [])
    assert all(changed[name] != item[name] for name in ("source", "key", "run"))


def test_a_cache_may_answer_for_a_result_while_it_is_there_and_never_for_one_that_is_not(given, tmp_path):
    root = str(tmp_path / "runs")
    missing = [start(given, root, [])[0] for _ in range(2)]
    assert missing[0]["made"] != missing[1]["made"]
    prepared, reused = prepare_item(missing[0], root)
    assert (prepared["key"], reused) == (missing[0]["key"], False)
    there = [start(given, root, [])[0] for _ in range(2)]
    assert there[0] == there[1]
    assert there[0]["made"] == "yes"
    open_store(root).delete("results/data")
    assert start(given, root, [])[0]["made"] not in ("yes", missing[0]["made"], missing[1]["made"])


def test_an_item_without_a_key_has_nothing_to_be_made(tmp_path):
    assert outcomes.marked([{"key": ""}], "train", str(tmp_path)) == [{"key": "", "made": "yes"}]


def test_an_outcome_is_found_by_key_and_by_run_as_long_as_its_verdict_is_there(tmp_path):
    root = str(tmp_path)
    said = finished(root, "k1", "run-1")
    assert outcomes.outcome(root, "k1") == outcomes.outcome_of(root, "run-1") == said
    assert outcomes.outcome(root, "k2") is None
    assert outcomes.outcome_of(root, "run-2") is None
    open_store(root).delete("results/compare")
    assert outcomes.outcome(root, "k1") is None


@pytest.mark.parametrize("run", ["", "../../k1", "a/b", ".hidden"])
def test_an_id_that_is_none_leads_nowhere(run, tmp_path):
    finished(str(tmp_path), "k1", run)
    assert outcomes.outcome_of(str(tmp_path), run) is None
    assert list(open_store(str(tmp_path)).list("outcomes")) == ["outcomes/k1.json"]
