"""How a node ends says what is to be done next, and its termination message says why, within what Kubernetes keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from trainer.errors import Stopped, UserError
from trainer.node import GIVEN_UP, STOPPED, message, outcome
from trainer.observe import word_of
from trainer.stores import open_store


def words(*errors: BaseException):
    return [word_of(f"rank-{number}", error) for number, error in enumerate(errors)]


FAULT = UserError.at("data.digits", "has no training rows", "lower split.valid")


@pytest.mark.parametrize(
    ("code", "asked", "errors", "restarts", "limit", "wanted"),
    [
        (0, False, [], 0, 3, 0),
        # the ranks saved their state, whoever was asked: this node, or one of its peers
        (0, False, [Stopped("saved")], 0, 3, STOPPED),
        (1, True, [Stopped("saved")], 3, 3, STOPPED),
        # asked before there was a state to save
        (-15, True, [], 3, 3, STOPPED),
        (1, False, [FAULT], 0, 3, 2),
        (1, False, [ValueError("a bug")], 0, 3, 1),
        (1, False, [ValueError("a bug")], 3, 3, GIVEN_UP),
        (1, False, [ValueError("a bug")], 0, 0, GIVEN_UP),
        (1, False, [ValueError("a bug")], 99, None, 1),
        # killed without a word, most often because memory ran out
        (-9, False, [], 0, 3, 1),
        # a rank that fails while it is asked to stop has failed
        (1, True, [ValueError("a bug")], 0, 3, 1),
    ],
)
def test_the_exit_code_says_what_is_to_be_done_next(code, asked, errors, restarts, limit, wanted):
    assert outcome(code, asked, words(*errors), restarts, limit) == wanted


def test_the_failure_policies_know_these_codes():
    from components import template
    from components.manifests import failure_rules

    assert (template.STOPPED, template.GIVEN_UP) == (STOPPED, GIVEN_UP)
    codes = [code for rule in failure_rules() for code in rule.get("onExitCodes", {}).get("values", [])]
    assert codes == [STOPPED, 2, GIVEN_UP]


@pytest.mark.parametrize("text", ["short", "long " * 5000, "ünïcode " * 2000])
def test_a_termination_message_fits_and_keeps_the_end_of_the_traceback(text):
    try:
        raise ValueError(text)
    except ValueError as error:
        found = message(words(error))
    assert len(found.encode()) <= 4096
    word = json.loads(found)
    assert (word["who"], word["type"]) == ("rank-0", "ValueError")
    assert word["message"].startswith(text[:50])
    assert "ValueError" in word["traceback"] or len(text) > 5000


def test_many_faults_are_cut_to_the_first_ones():
    faults = UserError(fault for n in range(200) for fault in UserError.at(f"place {n}", "found", "do this").faults)
    word = json.loads(message(words(faults)))
    assert word["faults"][0]["place"] == "place 0"
    assert len(word["faults"]) < 200


def node(root, key, folder, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1", "OMP_NUM_THREADS": "1", "COTRAIN_TERMINATION_LOG": str(folder / "message")}
    command = [sys.executable, "-m", "trainer.node", str(root), key]
    return subprocess.run(command, env={**os.environ, **settings, **environment}, capture_output=True, text=True, check=False)


def test_a_node_leaves_the_word_of_its_rank_where_kubernetes_looks_for_it(tmp_path):
    found = node(tmp_path / "nothing", "0" * 24, tmp_path, COTRAIN_MAX_RESTARTS="2", COTRAIN_RESTARTS="2")
    word = json.loads((tmp_path / "message").read_text())
    assert word["who"] == "rank-0"
    assert word["time"] <= time.time()
    assert found.returncode == (2 if word["exit_code"] == 2 else GIVEN_UP), found.stderr


def test_a_node_that_is_started_once_too_often_does_not_train(tmp_path):
    """The one before was killed as a whole, and could not say that it was the last."""
    found = node(tmp_path / "nothing", "0" * 24, tmp_path, COTRAIN_MAX_RESTARTS="0", COTRAIN_RESTARTS="1")
    word = json.loads((tmp_path / "message").read_text())
    assert (found.returncode, word["type"]) == (GIVEN_UP, "NotAgain")
    assert "cluster.max_restarts is 0" in word["message"]


def test_a_request_of_another_version_is_not_tried_again(tmp_path):
    """The image of the pods that train is older than the one that launches."""
    request = {"key": "0" * 24, "spec": {"name": "digits", "later": True, "data": {}, "models": {}, "tasks": {}}}
    open_store(str(tmp_path)).write(f"requests/train/{'0' * 24}.json", json.dumps(request).encode())
    found = node(tmp_path, "0" * 24, tmp_path)
    word = json.loads((tmp_path / "message").read_text())
    assert (found.returncode, word["type"]) == (2, "LaunchError"), found.stderr
    assert "later" in [fault["place"] for fault in word["faults"]]
    assert "another version" in word["message"]


def test_a_node_that_comes_late_finds_the_work_done(tmp_path):
    open_store(str(tmp_path)).write(f"results/train/{'0' * 24}/manifest.json", b"{}")
    found = node(tmp_path, "0" * 24, tmp_path)
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "message").exists()
