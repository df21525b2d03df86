"""What a cluster of a given size would do with a document's model: the lines of `cotrain plan --nodes N`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.errors import LaunchError, one_of
from trainer.plan import precision
from trainer.prepare import prepare
from trainer.scale import (
    Machines,
    Shape,
    daly_s,
    elastic_goodput,
    goodput,
    memory_bytes,
    restart_s,
    saving,
    sent_bytes,
    simulate,
    step_seconds,
    young_s,
)
from trainer.spec import JointSpec, Train

_ASSUMED = {field.name for field in dataclasses.fields(Machines)} - {"nodes", "ranks_per_node"}


def machines(nodes: int, gpus_per_node: int, assume: Sequence[str] = ()) -> Machines:
    """A cluster, with what is assumed of it as NAME=VALUE.

    Raises:
        LaunchError: for a name that is none, or a value that is no positive number.
    """
    values: dict[str, float] = {}
    for said in assume:
        name, _, value = said.partition("=")
        if name not in _ASSUMED:
            raise LaunchError.at("--assume", f"'{said}' names nothing that is assumed of a cluster", one_of(name, _ASSUMED))
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = 0.0
        if not 0 < values[name] < float("inf"):
            raise LaunchError.at("--assume", f"'{said}' gives no positive number", f"write {name}={getattr(Machines(1, 1), name):g}, say")
    return Machines(nodes, max(1, gpus_per_node), **values)


def lines(spec: JointSpec, root: str, cluster: Machines, device: str, parameters: float | None) -> Iterator[str]:
    """What the cluster would do with the model of a document, a line at a time; with `parameters`, with one of that size."""
    fitted = {name: prepare(name, part, root).json("fitted.json") for name, part in spec.data.items()}
    shape = shape_of(spec, fitted)
    if parameters:
        grown = parameters / shape.parameters
        shape = dataclasses.replace(
            shape, parameters=round(parameters), shared_parameters=round(shape.shared_parameters * grown),
            flops_per_row=shape.flops_per_row * grown, activation_bytes_per_row=shape.activation_bytes_per_row * grown**0.5,
        )  # fmt: skip
        yield f"as if the model had {parameters:,.0f} parameters: FLOPs in proportion, activations with the square root"
    rows = max(1.0, spec.train.batch / (spec.cluster.ranks * spec.train.accumulate))
    yield from _cluster(spec, cluster, shape, device, rows)
    yield from _memory(spec.train, cluster, shape, device, rows)
    yield from _steps(spec, cluster, shape, device, rows)
    yield from _failures(cluster, shape)


def shape_of(spec: JointSpec, fitted: Mapping[str, Any]) -> Shape:
    """What of a document's model matters to its cost."""
    import torch

    from trainer.activations import activation_bytes_per_row
    from trainer.joint import build
    from trainer.points import layers
    from trainer.run import flops_per_row

    with torch.device("meta"):
        module = build(spec, fitted)
    last: list[Any] = [list(layers(model).values())[-1].weight for model in module.models.values() if layers(model)]
    try:
        flops, activations = float(flops_per_row(spec, fitted)), activation_bytes_per_row(spec, fitted)
    except Exception:  # a model of the user's own may need more than shapes
        flops = activations = float("nan")
    return Shape(
        parameters=sum(p.numel() for p in module.parameters()),
        optimizer_states=max(len((phase.optimizer or spec.train.optimizer).state_names) for phase in spec.phases.values()),
        flops_per_row=flops,
        activation_bytes_per_row=activations,
        tasks=len(spec.tasks),
        layer_outputs=sum(weight.shape[0] for weight in last),
        layer_inputs=max((weight[0].numel() for weight in last), default=0),
        shared_parameters=sum(p.numel() for p in module.models.parameters()),
    )


def _cluster(spec: JointSpec, cluster: Machines, shape: Shape, device: str, rows: float) -> Iterator[str]:
    yield f"{cluster.nodes:,} nodes of {cluster.ranks_per_node}: {cluster.ranks:,} ranks ({device}), {precision(spec.train, device)}"
    yield f"  {rows:g} rows a rank and micro-batch as on {spec.cluster.ranks}: {rows * cluster.ranks * spec.train.accumulate:,.0f} a step"
    yield f"  {shape.parameters:,} parameters, {shape.flops_per_row:,.0f} FLOPs to predict a row"


def _memory(train: Train, cluster: Machines, shape: Shape, device: str, rows: float) -> Iterator[str]:
    yield "memory a rank"
    for stage in range(4):
        size = memory_bytes(shape, at_stage(train, stage), cluster.ranks, device, rows)
        parts = ", ".join(f"{name} {amount(n)}" for name, n in size.items() if n)
        yield f"{_label(train, stage, device)}: {amount(sum(size.values()))} ({parts})"


def _steps(spec: JointSpec, cluster: Machines, shape: Shape, device: str, rows: float) -> Iterator[str]:
    yield "a step: what a rank sends, and seconds with nothing hidden behind anything else"
    for stage in range(4):
        train = at_stage(spec.train, stage)
        sent = sent_bytes(shape, train, cluster.ranks, device)
        took = step_seconds(shape, train, cluster, device, rows)
        exchange = took.gradients_s + took.parameters_s
        yield (
            f"{_label(spec.train, stage, device)}: gradients {amount(sent['gradients'])}, parameters {amount(sent['parameters'])}; "
            f"compute {seconds(took.compute_s)}, exchange {seconds(exchange)}"
        )
    for name, phase in spec.phases.items():
        asked = sent_bytes(shape, spec.train, cluster.ranks, device, phase.balancer)["balancer"]
        if asked:
            took = step_seconds(shape, spec.train, cluster, device, rows, phase.balancer)
            yield f"    balancer {phase.balancer.kind} in phase {name}: {amount(asked)} more, {seconds(took.balancer_s)}"


def _failures(cluster: Machines, shape: Shape) -> Iterator[str]:
    kept, again = saving(shape, cluster), restart_s(shape, cluster)
    best = daly_s(kept.cost_s, cluster.mtbf_s)
    share = goodput(best, kept.cost_s, again, cluster.mtbf_s)
    yield "checkpoints"
    yield (
        f"  {amount(kept.size_bytes)}: gathered in {seconds(kept.gather_s)}, written by one rank in {seconds(kept.write_s)} "
        f"at {cluster.store_write_gb_s:g} GB/s, from the memory of its machine; read once by every node when training goes on"
    )
    yield "failures"
    often = f"one every {seconds(cluster.mtbf_s)} at {cluster.failures_per_1000_node_days:g} in 1,000 node-days"
    yield f"  {often}; a restart takes {seconds(again)}"
    yield f"  best time between checkpoints: {seconds(best)} (Daly), {seconds(young_s(kept.cost_s, cluster.mtbf_s))} (Young)"
    if share < 0.01:
        yield "  goodput: next to none, it fails before it gets anywhere"
        return
    intervals = max(100, round(20 * cluster.mtbf_s / best))  # so that a run sees failures
    lived = simulate(best, kept.cost_s, again, cluster.mtbf_s, runs=100, intervals=intervals)
    yield f"  goodput {100 * share:.1f} % expected, {100 * lived.goodput:.1f} ± {100 * lived.error:.1f} % in 100 simulated runs"
    stop = restart_s(shape, cluster, replaced=False)
    join = kept.cost_s + stop - cluster.notice_s
    elastic = elastic_goodput(best, kept.cost_s, stop, join, cluster.replace_s, cluster)
    yield f"  {100 * elastic:.1f} % where training goes on without a lost node until it is replaced (cluster.min_nodes)"


def at_stage(train: Train, stage: int) -> Train:
    """The same training at another ZeRO stage; what that stage can't offload stays."""
    zero = train.zero.model_dump() | {"stage": stage}
    zero |= {"offload_optimizer": "none"} if stage < 1 else {}
    zero |= {"offload_param": "none"} if stage < 3 else {}
    return train.model_copy(update={"zero": type(train.zero)(**zero)})


def _label(train: Train, stage: int, device: str) -> str:
    kind = precision(train, device)
    works_as = " (as 1 in low precision)" if stage == 0 and kind != "fp32" else ""
    return f"{' *' if train.zero.stage == stage else '  '} ZeRO {stage}{works_as}"


def amount(size: float) -> str:
    """Bytes, in powers of 1000 as networks and stores count."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def seconds(value: float) -> str:
    """A time, in the unit that fits."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"
