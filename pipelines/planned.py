"""What a run would do and cost: the lines of `cotrain plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.plan import deepspeed_config, model_state_bytes, plan_phase, precision, uses_deepspeed
from trainer.prepare import prepare
from trainer.requests import independent_requests, joint_requests
from trainer.results import Result, fetch
from trainer.spec import JointSpec

Json = dict[str, Any]


def lines(spec: JointSpec, root: str) -> Iterator[str]:
    """The plan, a line at a time. Data is prepared on the way, since class and row counts come from it."""
    prepared = {name: prepare(name, part, root) for name, part in spec.data.items()}
    manifests = {name: result.json("manifest.json") for name, result in prepared.items()}
    data = {name: {"key": result.key, "digest": manifests[name]["digest"], "rows": manifests[name]["rows"]} for name, result in prepared.items()}
    yield from _data(prepared, data)
    fitted = {name: result.json("fitted.json") for name, result in prepared.items()}
    yield from _models(spec, fitted)
    yield from _phases(spec, {name: int(entry["rows"]["train"]) for name, entry in data.items()})
    yield from _ranks(spec, fitted)
    yield from _runs(spec, data, root)


def _data(prepared: Mapping[str, Result], data: Mapping[str, Json]) -> Iterator[str]:
    yield "data"
    for name, result in prepared.items():
        rows = ", ".join(f"{int(n):,} {split}" for split, n in data[name]["rows"].items())
        yield f"  {name}: {rows} rows ({'found prepared' if result.reused else 'prepared now'}, digest {data[name]['digest'][:12]})"


def _models(spec: JointSpec, fitted: Mapping[str, Any]) -> Iterator[str]:
    from trainer.joint import build
    from trainer.run import flops_per_row

    joint = build(spec, fitted)
    yield "models"
    for name, module in joint.models.items():
        yield f"  {name}: {spec.models[name].kind}, {_count(module):,} parameters"
    for name, module in joint.heads.items():
        yield f"  head of {name}: {_count(module):,} parameters"
    yield f"  in all {_count(joint):,} parameters, {flops_per_row(spec, fitted):,} FLOPs to predict a row"


def _phases(spec: JointSpec, rows: Mapping[str, int]) -> Iterator[str]:
    train = spec.train
    for name, part in spec.phases.items():
        plan = plan_phase(spec, name, rows, spec.seed)
        sees = plan.present_ST.sum(0)
        each = ", ".join(f"{task} in {int(n):,}" for task, n in zip(plan.tasks, sees, strict=True))
        yield f"phase {name}"
        yield f"  {plan.steps:,} steps of {train.batch:,} rows a dataset, mixer {part.mixer.kind}: {each}"
        passes = f"{train.accumulate} backward pass{'es' if train.accumulate > 1 else ''}"
        yield f"  balancer {part.balancer.kind}: {passes} a step whatever the number of tasks"
        yield f"  validated every {plan.validate_every(train):,} steps" + (f", stops after {train.early_stop.patience} without gain" if train.early_stop else "")


def _ranks(spec: JointSpec, fitted: Mapping[str, Any]) -> Iterator[str]:
    from trainer.joint import build

    device = "cuda" if spec.cluster.gpus_per_node else "cpu"
    ranks, train = spec.cluster.ranks, spec.train
    each = train.batch / (ranks * train.accumulate)
    yield "ranks"
    yield f"  {ranks} on {spec.cluster.nodes} node{'s' if spec.cluster.nodes > 1 else ''} ({device}), {precision(train, device)}, {each:g} rows a micro-batch"
    state = model_state_bytes(_count(build(spec, fitted)), train, ranks, len(train.optimizer.state_names), device)
    sizes = ", ".join(f"{name} {_bytes(n)}" for name, n in state.items())
    yield f"  memory a rank, activations not counted: {_bytes(sum(state.values()))} ({sizes})"
    if uses_deepspeed(train, ranks, device):
        yield f"  DeepSpeed: {json.dumps(deepspeed_config(train, ranks, device))}"
    else:
        yield "  DeepSpeed: not needed, one rank in float32 has nothing to shard or reduce"


def _runs(spec: JointSpec, data: Mapping[str, Json], root: str) -> Iterator[str]:
    yield "runs"
    for request in joint_requests(spec, data) + independent_requests(spec, data):
        who = "joint" if request["task"] is None else f"{request['task']} alone"
        found = fetch(root, "train", request["key"]) is not None
        yield f"  {who}, seed {request['seed']}: {'found trained' if found else 'to be trained'} (key {request['key']})"


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:.4g} TiB"
