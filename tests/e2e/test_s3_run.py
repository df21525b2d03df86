"""The whole pipeline with everything that is kept in S3: results, checkpoints, the published model."""

from __future__ import annotations

import json

import pytest
from command import cotrain, document, write, write_csv

import trainer
from trainer.stores import open_store

pytestmark = pytest.mark.timeout(600)


def test_a_run_keeps_everything_in_s3_and_its_model_is_loaded_from_there(tmp_path, s3_bucket):
    root = f"{s3_bucket()}/team/work"
    write_csv(tmp_path / "table.csv")
    made = document()
    made["tasks"].pop("size")
    made["train"] |= {"checkpoint": {"every_steps": 10}}
    spec = write(tmp_path, made)
    ran = cotrain(tmp_path, "run", spec, "--root", root)

    assert [e["step"] for e in ran.of("checkpoint")] == [10, 20]
    assert f"published: {root}/models/tiny/versions/" in ran.err
    store = open_store(root)
    assert {key.split("/")[0] for key in store.list()} == {"models", "outcomes", "requests", "results", "specs"}  # checkpoints are swept
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"logs"}
    # one task alone is what the joint run is: trained once, by whichever of the two steps comes first
    assert len(ran.trained()) == 1
    assert sorted(reused for step, reused in ran.reused().items() if step.startswith("train ")) == [False, True]

    model = trainer.load(f"{root}/models/tiny")
    assert model.version == json.loads(store.read("models/tiny/champion.json"))["version"]
    left, right = model.predict([{"a": -2.0, "b": 0.0}, {"a": 2.0, "b": 0.0}])
    assert (left["side"]["value"], right["side"]["value"]) == ("left", "right")
    (tmp_path / "rows.jsonl").write_text('{"a": 2.0, "b": 0.0}\n')
    assert json.loads(cotrain(tmp_path, "predict", f"{root}/models/tiny", "rows.jsonl").out)["side"]["value"] == "right"

    again = cotrain(tmp_path, "run", spec, "--root", root)
    assert again.trained() == set()
    assert set(again.reused().values()) == {True}


def test_a_store_that_can_not_be_reached_is_told_before_anything_runs(tmp_path, monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    write_csv(tmp_path / "table.csv")
    spec = write(tmp_path, document())
    ran = cotrain(tmp_path, "run", spec, "--root", "s3://bucket", code=2)
    assert "http://127.0.0.1:9" in ran.err and "    fix: " in ran.err and "Traceback" not in ran.err
    assert "store" in cotrain(tmp_path, "doctor", "--root", "s3://bucket", code=2).out
