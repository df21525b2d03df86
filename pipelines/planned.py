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
    from trainer.joint import build

    prepared = {name: prepare(name, part, root) for name, part in spec.data.items()}
    manifests = {name: result.json("manifest.json") for name, result in prepared.items()}
    yield from _data(prepared, manifests)
    fitted = {name: result.json("fitted.json") for name, result in prepared.items()}
    module = build(spec, fitted)
    yield from _models(spec, module, fitted)
    yield from _phases(spec, {name: int(manifest["rows"]["train"]) for name, manifest in manifests.items()})
    yield from _ranks(spec, _count(module))
    yield from _runs(spec, prepared, manifests, root)


def _data(prepared: Mapping[str, Result], manifests: Mapping[str, Json]) -> Iterator[str]:
    yield "data"
    for name, result in prepared.items():
        rows = ", ".join(f"{int(manifests[name]['rows'][split]):,} {split}" for split in ("train", "valid", "test"))
        yield f"  {name}: {rows} rows ({'found prepared' if result.reused else 'prepared now'}, digest {manifests[name]['digest'][:12]})"


def _models(spec: JointSpec, module: Any, fitted: Mapping[str, Any]) -> Iterator[str]:
    yield "models"
    for name, model in module.models.items():
        yield f"  {name}: {spec.models[name].kind}, {_count(model):,} parameters"
    for name, head in module.heads.items():
        yield f"  head of {name}: {_count(head):,} parameters"
    yield f"  in all {_count(module):,} parameters, {_flops(spec, fitted)} FLOPs to predict a row"


def _flops(spec: JointSpec, fitted: Mapping[str, Any]) -> str:
    from trainer.run import flops_per_row

    try:
        return f"{flops_per_row(spec, fitted):,}"
    except Exception:  # a model of the user's own may need more than shapes
        return "an unknown number of"


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
        stops = f", stops after {train.early_stop.patience} without gain" if train.early_stop else ""
        yield f"  validated every {plan.validate_every(train):,} steps{stops}"


def _ranks(spec: JointSpec, parameters: int) -> Iterator[str]:
    cluster, train = spec.cluster, spec.train
    device, ranks = "cuda" if cluster.gpus_per_node else "cpu", cluster.ranks
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''}"
    yield "ranks"
    yield f"  {ranks} on {nodes} ({device}), {precision(train, device)}, {train.batch / (ranks * train.accumulate):g} rows a micro-batch"
    states = max(len((phase.optimizer or train.optimizer).state_names) for phase in spec.phases.values())
    size = model_state_bytes(parameters, train, ranks, states, device)
    parts = ", ".join(f"{name} {_bytes(n)}" for name, n in size.items())
    yield f"  memory a rank with ZeRO {train.zero.stage}, activations not counted: {_bytes(sum(size.values()))} ({parts})"
    if uses_deepspeed(train, ranks, device):
        yield f"  DeepSpeed: {json.dumps(deepspeed_config(train, ranks, device))}"
    else:
        yield "  DeepSpeed: not needed, one rank in float32 has nothing to shard or reduce"


def _runs(spec: JointSpec, prepared: Mapping[str, Result], manifests: Mapping[str, Json], root: str) -> Iterator[str]:
    data = {
        name: {"key": result.key, "digest": manifests[name]["digest"], "rows": manifests[name]["rows"]} for name, result in prepared.items()
    }
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
