"""Elastic nodes: what torchrun is told besides, and which words of many worlds count."""

from __future__ import annotations

from training_inputs import document

from trainer.elastic import environment, is_elastic, last_incident, rendezvous
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
