from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from training_inputs import document

from trainer.plan import (
    deepspeed_config,
    independent,
    learning_rate,
    model_state_bytes,
    plan_phase,
    task_steps,
    train_relevant,
    uses_deepspeed,
)
from trainer.spec import JointSpec, Schedule, Train, Zero

ROWS = {"plants": 100, "stones": 40}


@lru_cache
def spec_with(*schedule: tuple[str, Any]) -> JointSpec:
    return document(train={"schedule": dict(schedule)})


def rate(step: int, steps: int, **schedule: Any) -> float:
    return learning_rate(spec_with(*schedule.items()), 2.0, step, steps)


def test_the_learning_rate_ramps_up_linearly_and_is_at_its_peak_after_the_warm_up() -> None:
    assert [rate(step, 100, kind="constant", warmup=0.04) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rate(4, 100, kind="cosine", warmup=0.04) == 2.0
    assert rate(0, 1) == 2.0
    assert rate(0, 100, kind="linear", warmup=0) == 2.0


def test_the_learning_rate_goes_down_to_its_floor() -> None:
    assert rate(50, 100, kind="cosine", warmup=0) == pytest.approx(1.0)
    assert rate(25, 100, kind="cosine", warmup=0) == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(25, 100, kind="linear", warmup=0) == pytest.approx(1.5)
    assert rate(50, 100, kind="linear", warmup=0, floor=0.5) == pytest.approx(1.5)
    for kind in ("cosine", "linear"):
        rates = [rate(step, 100, kind=kind, warmup=0.1, floor=0.1) for step in range(100)]
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert 0.2 < rates[-1] < 0.24  # the floor is where a step after the last would be: the last one still learns
    assert Schedule().floor == 0


def test_datasets_are_drawn_as_often_as_steps_see_them() -> None:
    plan = plan_phase(document(phases={"joint": {"steps": 50, "mixer": {"kind": "round_robin", "over": "tasks"}}}), "joint", ROWS, 0)
    assert plan.datasets == ["plants", "stones"]
    assert plan.present_SD[:3].tolist() == [[True, False], [True, False], [False, True]]
    assert plan.drawn_SD[0].tolist() == [0, 0]
    assert plan.drawn_SD[-1].tolist() == [34, 16]
    assert (np.diff(plan.drawn_SD, axis=0) == plan.present_SD).all()


def test_epochs_become_steps_and_the_seed_draws_the_schedule() -> None:
    spec = document(phases={"joint": {"epochs": 3, "mixer": "proportional"}})
    one, same, other = (plan_phase(spec, "joint", ROWS, seed) for seed in (1, 1, 2))
    assert one.steps == math.ceil(3 * 140 / 25)
    assert (one.present_ST == same.present_ST).all()
    assert (one.present_ST != other.present_ST).any()


def test_a_baseline_gets_as_many_steps_as_the_joint_run_gives_its_task() -> None:
    spec = document(
        phases={"a": {"epochs": 9, "mixer": "proportional", "balancer": "uncertainty"}, "b": {"tasks": ["hard"], "steps": 7}},
        observe={"port": 0},
    )
    for task, phases in {"plant": ["a"], "hard": ["a", "b"]}.items():
        alone = independent(spec, task, ROWS, seed=5)
        assert list(alone.tasks) == [task]
        assert {name: phase.steps for name, phase in alone.phases.items()} == task_steps(spec, task, ROWS, 5)
        assert list(alone.phases) == phases
        plans = [plan_phase(alone, phase, ROWS, 5) for phase in phases]
        assert all(plan.present_ST.all() for plan in plans)
        assert all(phase.balancer.kind == "equal" for phase in alone.phases.values())
        assert alone.train == spec.train
        assert alone.observe.port is None
    assert task_steps(spec, "plant", ROWS, 5) == {"a": int(plan_phase(spec, "a", ROWS, 5).present_ST[:, 0].sum())}


def test_the_training_key_depends_on_what_is_learnt_and_not_on_how_it_is_watched_or_saved() -> None:
    spec = document()
    same = [
        document(name="other"), document(train={"checkpoint": {"every_steps": 3}}), document(observe={"port": 9000}),
        document(compare={"independent": False}), document(seeds=3), document(publish={"store": "file:///elsewhere"}),
    ]  # fmt: skip
    assert all(train_relevant(other) == train_relevant(spec) for other in same)
    tasks = dict(reversed(spec.to_json()["tasks"].items()))
    different = [
        document(train={"batch": 26}), document(train={"zero": 1}), document(cluster={"processes_per_node": 2}), document(tasks=tasks),
        document(phases={"joint": {"steps": 11}}), document(models={"trunk": {"kind": "mlp", "hidden": [3]}}),
    ]  # fmt: skip
    assert all(train_relevant(other) != train_relevant(spec) for other in different)


def test_deepspeed_is_told_about_clipping_always() -> None:
    assert deepspeed_config(Train(clip=None), 2, "cpu")["gradient_clipping"] == 0.0
    assert deepspeed_config(Train(clip=0.3), 2, "cpu")["gradient_clipping"] == 0.3


@pytest.mark.parametrize("batch", [8, 25, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_batch_sizes_deepspeed_is_told_fit_together(batch: int, ranks: int, accumulate: int) -> None:
    config = deepspeed_config(Train(batch=batch, accumulate=accumulate), ranks, "cpu")
    assert config["train_micro_batch_size_per_gpu"] >= 1
    assert config["train_batch_size"] == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * ranks
    assert config["gradient_accumulation_steps"] == accumulate


def test_low_precision_needs_a_sharded_optimiser() -> None:
    for stage, expected in ((0, 1), (1, 1), (2, 2), (3, 3)):
        config = deepspeed_config(Train(zero=Zero(stage=stage), precision="bf16"), 2, "cpu")
        assert config["zero_optimization"]["stage"] == expected
        assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    assert deepspeed_config(Train(zero=Zero(stage=0)), 2, "cpu")["zero_optimization"]["stage"] == 0


def test_deepspeed_is_used_where_there_is_something_to_shard_reduce_or_round() -> None:
    assert not uses_deepspeed(Train(), 1, "cpu")
    assert not uses_deepspeed(Train(zero=Zero(stage=3)), 1, "cpu")
    assert uses_deepspeed(Train(), 2, "cpu")
    assert uses_deepspeed(Train(precision="bf16"), 1, "cpu")
    assert uses_deepspeed(Train(zero=Zero(stage=1, offload_optimizer="cpu")), 1, "cpu")


def test_memory_goes_down_with_the_stage() -> None:
    """1000 float32 parameters and AdamW's two states on 4 ranks; stages from 1 work on a copy."""
    found = [sum(model_state_bytes(1000, Train(zero=Zero(stage=stage)), 4, 2, "cpu").values()) for stage in range(4)]
    assert found == [16_000, 11_000, 8_000, 5_000]
    half = model_state_bytes(1000, Train(precision="bf16"), 4, 2, "cpu")
    assert half == {"parameters": 2000, "gradients": 2000, "optimizer": 3000}
