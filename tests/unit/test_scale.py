"""What a cluster would do: formulas against simulations, and against what others say."""

from __future__ import annotations

import math
import os

import pytest
from click.testing import CliRunner
from training_inputs import document

from pipelines.cli import main
from pipelines.scale_report import amount, at_stage, machines, seconds
from trainer.activations import activation_bytes_per_row
from trainer.catalog import find
from trainer.errors import LaunchError
from trainer.order import Order, share
from trainer.scale import (
    Machines,
    Shape,
    balancer_elements,
    daly_s,
    elastic_goodput,
    goodput,
    memory_bytes,
    restart_s,
    saving,
    sent_bytes,
    shards_read,
    simulate,
    simulate_elastic,
    step_seconds,
    young_s,
)
from trainer.spec import Train

HOUR = 3600.0
CLUSTERS = [(60.0, 400.0, 37 * HOUR), (84.0, 500.0, 3.7 * HOUR), (300.0, 600.0, 3.7 * HOUR), (300.0, 1200.0, 0.5 * HOUR)]


@pytest.mark.parametrize(("cost_s", "restart_s", "mtbf_s"), CLUSTERS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_expected_goodput_is_that_of_simulated_runs(cost_s, restart_s, mtbf_s, factor):
    interval_s = factor * daly_s(cost_s, mtbf_s)
    intervals = max(100, round(40 * mtbf_s / interval_s))
    lived = simulate(interval_s, cost_s, restart_s, mtbf_s, runs=200, intervals=intervals)
    expected = goodput(interval_s, cost_s, restart_s, mtbf_s)
    assert lived.failures > 20
    assert lived.error < 0.02 * expected
    # the mean of a ratio is a little above the ratio of means: by its variance
    assert abs(lived.goodput - expected) < 3 * lived.error + 200 * lived.error**2 / expected


@pytest.mark.parametrize(("nodes", "cost_s", "read_s"), [(100, 60.0, 40.0), (1000, 84.0, 100.0), (1000, 200.0, 200.0)])
def test_goodput_of_an_elastic_run_is_that_of_simulated_ones_to_first_order(nodes, cost_s, read_s):
    cluster = Machines(nodes, 8)
    interval_s, stop_s, join_s = daly_s(cost_s, cluster.mtbf_s), 120 + read_s, cost_s + 60 + read_s
    expected = elastic_goodput(interval_s, cost_s, stop_s, join_s, cluster.replace_s, cluster)
    lived = simulate_elastic(interval_s, cost_s, stop_s, join_s, cluster.replace_s, cluster)
    assert abs(lived.goodput - expected) < 3 * lived.error + (1 - expected) ** 2 / 4


@pytest.mark.parametrize(("cost_s", "restart_s", "mtbf_s"), CLUSTERS)
def test_no_other_time_between_checkpoints_is_better_than_daly_s(cost_s, restart_s, mtbf_s):
    best = daly_s(cost_s, mtbf_s)
    there = goodput(best, cost_s, restart_s, mtbf_s)
    assert all(goodput(best * factor, cost_s, restart_s, mtbf_s) < there for factor in (0.5, 0.8, 1.25, 2.0))


def test_young_s_interval_is_daly_s_where_failures_are_rare():
    assert daly_s(1.0, 1e8) == pytest.approx(young_s(1.0, 1e8), rel=1e-3)
    assert young_s(1.0, 1e8) == pytest.approx(math.sqrt(2e8))
    assert daly_s(100.0, 40.0) == 40.0


def test_goodput_falls_with_everything_that_takes_time():
    start = (600.0, 20.0, 200.0, 2 * HOUR)
    assert 0 < goodput(*start) < 1
    for worse in ((600.0, 40.0, 200.0, 2 * HOUR), (600.0, 20.0, 400.0, 2 * HOUR), (600.0, 20.0, 200.0, HOUR)):
        assert goodput(*worse) < goodput(*start)
    assert goodput(600.0, 20.0, 200.0, 0.1) == 0.0


def test_failures_are_as_often_as_the_source_says():
    """Kokolis et al. 2025 project 1.8 hours between failures for 16,384 GPUs at this rate."""
    assert Machines(2048, 8).mtbf_s / HOUR == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (1, 8), (4, 8), (1000, 8)])
def test_model_states_take_what_deepspeed_estimates(nodes, gpus):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape, ranks, states = Shape(7 * 10**9), nodes * gpus, ("parameters", "gradients", "optimizer", "gradients in float32")
    two, three = (memory_bytes(shape, Train(precision="bf16", zero={"stage": s}), ranks, "cuda", 0) for s in (2, 3))
    _, theirs = estimate_zero2_model_states_mem_needs(shape.parameters, gpus, nodes, cpu_offload=False)
    assert sum(two[name] for name in states) == pytest.approx(theirs, rel=1e-6)
    _, theirs, _ = estimate_zero3_model_states_mem_needs(shape.parameters, 0, gpus, nodes, cpu_offload=False, cpu_offload_params=False)
    # theirs counts 18 bytes a parameter at stage 3, and 2 + 18 at stage 2: the sharded parameters themselves are left out
    assert sum(three[name] for name in states) == pytest.approx(theirs * 20 / 18, rel=1e-6)


def test_a_rank_alone_sends_nothing_and_no_stage_sends_less_than_a_reduction():
    shape = Shape(10**6, tasks=3, layer_outputs=64, layer_inputs=64)
    upgrad = find("balancer", "upgrad")()
    assert sum(sent_bytes(shape, Train(precision="bf16"), 1, "cuda", upgrad).values()) == 0
    for stage in range(4):
        sent = sent_bytes(shape, at_stage(Train(), stage), 64, "cuda")
        assert sum(sent.values()) >= 2 * 63 / 64 * 4e6


def test_a_gramian_of_representations_is_next_to_nothing_and_an_exact_one_is_not():
    shape = Shape(10**7, tasks=4, layer_outputs=256, layer_inputs=512, shared_parameters=9 * 10**6)
    upgrad = find("balancer", "upgrad")
    sizes = [balancer_elements(shape, upgrad(gram={"source": source})) for source in ("representation", "last_layer", "exact")]
    assert sizes == [16, 4 * 256 * 65, 4 * 9 * 10**6]
    assert balancer_elements(shape, find("balancer", "equal")()) == 0
    assert balancer_elements(shape, upgrad(gram={"source": "representation"}, probe_every=100)) == 16 + 4 * 9 * 10**4


def test_steps_and_checkpoints_take_longer_on_slower_machines():
    shape, train = Shape(10**9, flops_per_row=2e9), Train(precision="bf16")
    slow, fast = Machines(8, 8, network_gb_s=10, store_write_gb_s=0.1, store_read_gb_s=0.1), Machines(8, 8)
    assert step_seconds(shape, train, slow, "cuda", 4).total_s > step_seconds(shape, train, fast, "cuda", 4).total_s
    assert saving(shape, slow).cost_s > saving(shape, fast).cost_s == pytest.approx(0.5 + 12 / 0.5 + 12 * 63 / 64 / 50)
    assert restart_s(shape, slow) - restart_s(shape, fast) == pytest.approx(12 / 0.1 - 12 / 1.0)


def test_activations_are_those_of_real_tensors():
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from trainer.joint import build

    spec = document(models={"trunk": {"kind": "mlp", "hidden": [32, 16]}})
    vector = {"kind": "vector", "shape": [6]}
    fitted = {
        "plants": {
            "x": vector,
            "plant": {"kind": "category", "shape": [], "classes": ["a", "b", "c"]},
            "height": {"kind": "number", "shape": []},
        },
        "stones": {"x": vector, "hard": {"kind": "category", "shape": [], "classes": ["a", "b"]}},
    }
    module, rows, kept, alive = build(spec, fitted), 5, {}, []

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    for tasks in (["plant", "height"], ["hard"]):
        x = torch.zeros(rows, 6)
        alive.append(x)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            alive.append(module.outputs(tasks, {"x": x}))
        kept.pop(x.untyped_storage().data_ptr(), None)
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert activation_bytes_per_row(spec, fitted) == sum(kept.values()) / rows > 0


@pytest.mark.parametrize(
    ("said", "found"), [("netwrk_gb_s=3", "netwrk_gb_s=3"), ("network_gb_s", "positive"), ("replace_s=-1", "positive")]
)
def test_what_can_not_be_assumed_is_said(said, found):
    with pytest.raises(LaunchError, match=found):
        machines(2, 8, [said])
    assert machines(2, 8, ["network_gb_s=25"]).network_gb_s == 25


def test_the_plan_of_a_cluster_says_memory_exchange_checkpoints_and_goodput(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTRAIN_EVENTS", os.devnull)
    example = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "01-digits.yaml")
    command = ["plan", example, "--root", str(tmp_path), "--nodes", "1000", "--gpus-per-node", "8", "--parameters", "7e9"]
    ended = CliRunner().invoke(main, [*command, "--set", "train.precision=bf16", "--set", "train.zero=2", "--assume", "store_write_gb_s=2"])
    assert ended.exit_code == 0, ended.output
    for text in (
        "8,000 ranks (cuda), bf16",
        " * ZeRO 2: ",
        "84 GB: gathered in 1.68 s, written by one rank in 42.5 s",
        "goodput ",
        " simulated runs",
    ):
        assert text in ended.output
    alone = CliRunner().invoke(main, ["plan", example, "--parameters", "7e9"])
    assert alone.exit_code == 2
    assert "add --nodes" in alone.output


@pytest.mark.parametrize(("rows", "shards", "nodes", "epochs"), [(6000, 30, 100, 1.0), (6000, 300, 40, 1.0), (6000, 30, 4, 0.01)])
def test_a_node_reads_as_many_shards_of_a_real_order_as_expected(rows, shards, nodes, epochs):
    order = Order(rows, 3, "data")
    drawn = order.take(0, round(rows * epochs))
    per_shard = rows // shards
    found = [len({row // per_shard for row in drawn[share(len(drawn), nodes, node)].tolist()}) / shards for node in range(nodes)]
    assert sum(found) / nodes == pytest.approx(shards_read(rows, shards, nodes, epochs), rel=0.05)
    assert shards_read(rows, shards, 1) == 1.0


def test_amounts_and_times_have_the_unit_that_fits():
    assert [amount(n) for n in (12, 1500, 84e9, 2.5e15)] == ["12 B", "1.5 kB", "84 GB", "2.5 PB"]
    assert [seconds(n) for n in (5e-6, 0.25, 42, 90, 13_000)] == ["5 µs", "250 ms", "42 s", "1.5 min", "3.61 h"]
