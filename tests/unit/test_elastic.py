"""Elastic nodes: what torchrun is told besides, and which words of many worlds count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_inputs import document

import trainer.node
import trainer.run
from trainer.elastic import environment, is_elastic, last_incident, rendezvous
from trainer.errors import Stopped
from trainer.plan import train_relevant

OPTIONS = ["--nnodes=2:3", "--rdzv-backend=c10d", "--max-restarts=3"]


def test_the_first_node_keeps_the_rendezvous_and_no_other():
    """Found out from names, nobody might: a pod's name need not be known when it starts."""
    said = [rendezvous(OPTIONS, {"PET_NODE_RANK": rank})[0] for rank in "012"]
    assert ["is_host=true" in option for option in said] == [True, False, False]


def test_waiting_times_may_be_set():
    (option,) = rendezvous(OPTIONS, {"PET_NODE_RANK": "0", "PET_RDZV_CONF": "last_call_timeout=2"})
    assert "last_call_timeout=2" in option
    assert "last_call_timeout=30" not in option


def test_a_job_that_needs_all_its_nodes_is_left_alone():
    assert not is_elastic([])
    assert not is_elastic(["--nnodes=3"])
    assert rendezvous([], {"PET_NODE_RANK": "0"}) == []
    assert environment([]) == {}


def test_the_words_of_worlds_that_others_followed_don_t_count():
    words = [{"time": t, "who": f"rank-{n}"} for n, t in enumerate([10.0, 11.0, 500.0, 501.5])]
    assert [word["who"] for word in last_incident(words)] == ["rank-2", "rank-3"]


def test_an_elastic_run_is_not_taken_for_one_that_had_all_its_nodes():
    fixed = document(cluster={"nodes": 3, "processes_per_node": 1})
    elastic = document(cluster={"nodes": 3, "min_nodes": 2, "processes_per_node": 1}, train={"checkpoint": {"every_steps": 5}})
    same = document(cluster={"nodes": 3, "min_nodes": 3, "processes_per_node": 1, "peer_timeout_s": 5})
    assert train_relevant(elastic)["ranks"] != train_relevant(fixed)["ranks"] == train_relevant(same)["ranks"]


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The exit code of an elastic node whose torchrun ends with a code, leaves words, and may leave a result."""

    def run(code: int, words: list[dict], result: bool = False, before: bool = False) -> tuple[int, list]:
        calls = []
        sealed = tmp_path / "results" / "train" / "key" / "manifest.json"

        def seal() -> None:
            sealed.parent.mkdir(parents=True)
            sealed.write_text("{}")

        def torchrun(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
            calls.append((command, environment))
            for number, said in enumerate(words):
                blank = {"who": f"rank-{number}", "faults": [], "exit_code": 1, "traceback": "", "message": "", "type": "RuntimeError"}
                (Path(environment["COTRAIN_FAILURES"]) / f"{number}.json").write_text(json.dumps(blank | {"time": number} | said))
            if result:
                seal()
            return code, False

        if before:
            seal()
        monkeypatch.setattr(trainer.node, "call", torchrun)
        monkeypatch.setattr("sys.argv", ["trainer.node", str(tmp_path), "key", *OPTIONS])
        monkeypatch.setenv("PET_NODE_RANK", "0")
        return trainer.node.main(), calls

    return run


def test_a_node_that_lost_peers_on_the_way_has_trained_all_the_same(node):
    code, ((command, environment),) = node(0, [{"type": "RuntimeError"}])
    assert code == 0
    assert any("is_host=true" in word for word in command)
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_a_node_that_comes_back_when_the_others_are_done_has_nothing_to_do(node):
    assert node(1, [], before=True) == (0, [])


def test_a_node_that_waited_outside_until_the_others_were_done_has_not_failed(node):
    assert node(1, [{"type": "RuntimeError"}], result=True)[0] == 0


def test_what_the_user_has_to_put_right_ends_an_elastic_node_too(node):
    assert node(1, [{"time": 1000.0}, {"time": 5000.0, "exit_code": 2, "type": "DataError"}])[0] == 2


@pytest.mark.parametrize(("elastic", "code"), [("1", 130), ("", 0)])
def test_ranks_that_are_asked_to_stop_end_with_an_error_only_where_others_go_on(elastic, code, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise Stopped("asked to stop")

    monkeypatch.setenv("COTRAIN_ELASTIC", elastic)
    monkeypatch.setattr("sys.argv", ["trainer.run", str(tmp_path), "key"])
    monkeypatch.setattr(trainer.run, "read_request", stop)
    assert trainer.run.main() == code
