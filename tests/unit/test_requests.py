from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_inputs import TASKS, document

from trainer.requests import independent_requests, joint_requests, read_request, write_request
from trainer.spec import JointSpec

DATA: dict[str, dict[str, Any]] = {
    "plants": {"key": "k1", "digest": "d1", "rows": {"train": 100, "valid": 10, "test": 10}},
    "stones": {"key": "k2", "digest": "d2", "rows": {"train": 40, "valid": 10, "test": 10}},
}


def test_there_is_a_joint_run_a_seed_and_a_baseline_a_task_and_seed() -> None:
    spec = document(seed=4, seeds=2)
    joint, alone = joint_requests(spec, DATA), independent_requests(spec, DATA)
    assert [(r["role"], r["task"], r["seed"]) for r in joint] == [("joint", None, 4), ("joint", None, 5)]
    assert [(r["task"], r["seed"]) for r in alone] == [(task, seed) for task in TASKS for seed in (4, 5)]
    assert len({r["key"] for r in joint + alone}) == 8
    assert list(alone[0]["data"]) == ["plants"]


def test_no_baselines_where_nothing_is_compared() -> None:
    assert independent_requests(document(compare={"independent": False}), DATA) == []


def test_more_seeds_leave_the_runs_there_are() -> None:
    for requests in (joint_requests, independent_requests):
        assert {r["key"] for r in requests(document(seeds=1), DATA)} < {r["key"] for r in requests(document(seeds=3), DATA)}


@pytest.mark.parametrize("balancer", ["equal", "uncertainty"])
def test_the_only_task_is_trained_once(balancer: str) -> None:
    spec = document(tasks={"plant": TASKS["plant"]}, phases={"joint": {"epochs": 2, "balancer": balancer}}, seeds=2)
    assert [r["key"] for r in independent_requests(spec, DATA)] == [r["key"] for r in joint_requests(spec, DATA)]


def test_a_baseline_does_not_depend_on_other_tasks_of_other_data() -> None:
    """Adding a task to the document trains no baseline anew."""
    small = document(tasks={name: TASKS[name] for name in ("plant", "height")})
    before, after = ({r["task"]: r["key"] for r in independent_requests(spec, DATA)} for spec in (small, document()))
    assert after["plant"] == before["plant"]
    assert after["height"] == before["height"]


def test_keys_depend_on_content_not_on_where_it_lies() -> None:
    moved = {name: entry | {"key": "elsewhere"} for name, entry in DATA.items()}
    changed = DATA | {"stones": DATA["stones"] | {"digest": "other"}}
    (key,) = (r["key"] for r in joint_requests(document(), DATA))
    assert [r["key"] for r in joint_requests(document(), moved)] == [key]
    assert [r["key"] for r in joint_requests(document(), changed)] != [key]


def test_a_request_reads_back(tmp_path: Path) -> None:
    (request,) = joint_requests(document(), DATA)
    write_request(str(tmp_path), request)
    found = read_request(str(tmp_path), request["key"])
    assert found == request
    assert JointSpec.model_validate(found["spec"]) == document()
    assert list(found["spec"]["tasks"]) == list(TASKS)
