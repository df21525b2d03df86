"""Results on a machine: fetched once by one of its processes, and no more of them than is of use."""

from __future__ import annotations

import boto3
import numpy as np
import pytest
import torch
from training_inputs import ask, document

from trainer.plan import plan_phase
from trainer.results import fetch
from trainer.run import Run
from trainer.world import World


@pytest.fixture
def prepared(s3_bucket, tmp_path, monkeypatch):
    """A bucket with a training request, and a home where nothing was fetched yet."""
    root = s3_bucket("data")
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    request = ask(document(), root)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return root, request


def world(rank: int, local_rank: int) -> World:
    return World(rank, 1, local_rank, torch.device("cpu"))


def empty(root: str, below: str) -> None:
    """Delete what is stored there, manifests excepted: what is read again is missed."""
    client, bucket = boto3.client("s3"), root.removeprefix("s3://")
    for item in client.list_objects_v2(Bucket=bucket, Prefix=below)["Contents"]:
        if not item["Key"].endswith("manifest.json"):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def test_training_fetches_no_test_rows_and_evaluation_then_fetches_the_rest(prepared):
    root, request = prepared
    key = request["data"]["stones"]["key"]
    Run(request, root, world(0, 0), 0.0)
    partial = fetch(root, "data", key, again=False)
    names = {file.name for file in partial.folder.iterdir()}
    assert {"train-00000.arrow", "valid-00000.arrow", "fitted.json", "manifest.json"} <= names
    assert not [name for name in names if "test" in name]
    whole = fetch(root, "data", key)
    assert {"test-00000.arrow", "raw-test-00000.arrow"} <= {file.name for file in whole.folder.iterdir()}


def test_other_ranks_of_a_machine_fetch_nothing(prepared):
    """They would each download, or at least hash, the whole dataset."""
    root, request = prepared
    Run(request, root, world(0, 0), 0.0)
    empty(root, "results/data")
    other = Run(request, root, world(1, 1), 0.0)
    rows = {name: other.data.rows(name) for name in request["data"]}
    assert plan_phase(other.spec, "joint", rows, 0).steps == 10
    assert len(other.data.batch("stones", "train", np.arange(3), ["hard"])[0]["x"]) == 3
