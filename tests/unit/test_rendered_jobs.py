"""What is read of a rendered TrainJob or Job: both run the same, and fail alike."""

from __future__ import annotations

import pytest
from training_inputs import document

from components.manifests import render
from components.rendered import Pods, expand, pods_of
from components.target import Target
from trainer.errors import LaunchError
from trainer.requests import joint_requests


def rendered(launcher: str, **cluster: object) -> Pods:
    spec = document(cluster={"nodes": 3, "processes_per_node": 2} | cluster, train={"checkpoint": {"every_minutes": 1}})
    (request,) = joint_requests(spec, {name: {"key": "k", "digest": "d", "rows": {"train": 9}} for name in spec.data})
    return pods_of(render(request, Target("/somewhere", image="here/cotrain:1"), launcher))


def test_a_trainjob_and_a_job_run_the_same_on_as_many_nodes():
    one, other = rendered("trainjob"), rendered("job")
    assert one.command == other.command
    assert (one.nodes, one.processes, one.least) == (other.nodes, other.processes, other.least) == (3, 2, 3)
    peers = dict.fromkeys(("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"), "x")
    first, second = (pods.environment(1, "10.0.0.2", 0, peers) for pods in (one, other))
    bound = {"COTRAIN_MAX_RESTARTS", "COTRAIN_RESTARTS"}  # a JobSet's restarts are counted for all nodes
    assert {name: value for name, value in first.items() if name not in bound} == second


def test_failures_are_dealt_with_as_each_kind_of_job_does():
    one, other = rendered("trainjob", max_restarts=5).policy, rendered("job", max_restarts=5).policy
    assert (one.restarts, one.each) == (5, False)
    assert (other.restarts, other.each) == (5, True)
    assert (one.final, one.uncounted) == (other.final, other.uncounted) == ({2, 3}, {143})


def test_the_fewest_nodes_are_those_of_the_command():
    assert rendered("trainjob", min_nodes=2).least == 2
    assert rendered("trainjob", min_nodes=3).least == 3


def test_a_reference_that_one_machine_can_not_resolve_is_said():
    pods = Pods("j", "n", ("true",), ({"name": "ZONE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['zone']"}}},), 1, 1, None)
    with pytest.raises(LaunchError, match=r"env\.ZONE: refers to metadata\.labels\['zone'\]"):
        pods.environment(0, "127.0.0.1", 0, {})


def test_manifests_without_a_job_are_refused():
    with pytest.raises(LaunchError, match="neither a TrainJob nor a Job"):
        pods_of([{"kind": "Service", "metadata": {}, "spec": {}}])


@pytest.mark.parametrize(
    ("text", "found"), [("$(A):$(B)", "1:2"), ("$$(A)", "$(A)"), ("$(C)", "$(C)"), ("$A $( A) $", "$A $( A) $"), ("$$$(A)", "$1")]
)
def test_references_are_resolved_as_the_kubelet_does(text, found):
    assert expand(text, {"A": "1", "B": "2"}) == found
