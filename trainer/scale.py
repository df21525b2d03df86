"""What a cluster of any size would do with a model: memory, communication, checkpoints, and how much of the time is of use. Pure.

Symbols, as in the literature: n ranks, P parameters, delta what a checkpoint costs, M mean time between failures, R what a restart costs,
tau the time between two checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainer.parts import Balancer
from trainer.plan import deepspeed_config, model_state_bytes, precision, uses_deepspeed
from trainer.spec import Train

GB = 1e9
_LIVE_PARAMETERS = 10**9
"""Parameters that are whole at a time at stage 3: stage3_max_live_parameters of DeepSpeed, which nothing changes here."""


@dataclass(frozen=True)
class Machines:
    """A cluster. What it starts with is a node of eight H100 on a 400 Gbit/s network, and a store as measured on one machine."""

    nodes: int
    ranks_per_node: int
    rank_tflops: float = 400.0
    """Sustained 10^12 floating-point operations a second of a rank."""
    network_gb_s: float = 50.0
    """10^9 bytes a second that a node can send, all of its network cards together."""
    hop_us: float = 5.0
    """Microseconds from one rank to the next."""
    store_write_gb_s: float = 0.5
    """10^9 bytes a second that one process uploads, hashing included."""
    store_wait_s: float = 0.5
    """Seconds that a checkpoint takes however small it is."""
    store_read_gb_s: float = 1.0
    """10^9 bytes a second that a node downloads."""
    store_total_gb_s: float = 100.0
    """10^9 bytes a second that the store gives to all nodes together."""
    failures_per_1000_node_days: float = 6.5
    """Source: Kokolis et al., Revisiting Reliability in Large-Scale Machine Learning Research Clusters, HPCA 2025: RSC-1."""
    notice_s: float = 60.0
    """From a failure to the moment when everyone knows."""
    replace_s: float = 300.0
    """Until another node has taken the place of one that failed."""
    start_s: float = 60.0
    """From the start of the processes to the first step, the checkpoint's download not counted."""

    @property
    def ranks(self) -> int:
        """World size."""
        return self.nodes * self.ranks_per_node

    @property
    def mtbf_s(self) -> float:
        """Mean seconds between failures of any node, M."""
        return 86_400e3 / (self.failures_per_1000_node_days * self.nodes)


@dataclass(frozen=True)
class Shape:
    """What of a joint model matters to its cost."""

    parameters: int
    optimizer_states: int = 2
    flops_per_row: float = 0.0
    """Of a forward pass; a backward pass takes twice as many."""
    activation_bytes_per_row: float = 0.0
    tasks: int = 1
    layer_outputs: int = 0
    """Outputs of the last shared layer; 0 where no balancer reads it."""
    layer_inputs: int = 0
    shared_parameters: int = 0


# --- memory ------------------------------------------------------------------------------------------------------


def memory_bytes(shape: Shape, train: Train, ranks: int, device: str, rows: float) -> dict[str, float]:
    """Bytes of a rank by what they hold: model states, what DeepSpeed exchanges through, and the activations of a micro-batch.

    Args:
        shape: of the model.
        train: how it is trained.
        ranks: world size.
        device: `cpu` or `cuda`.
        rows: of a micro-batch on a rank.
    """
    found: dict[str, float] = dict(model_state_bytes(shape.parameters, train, ranks, shape.optimizer_states, device))
    low = 4 if precision(train, device) == "fp32" else 2
    stage = _stage(train, ranks, device)
    # the optimiser works on a float32 copy of the gradients of this rank's part
    found["gradients in float32"] = 4 * shape.parameters / ranks if stage and low == 2 else 0.0
    found["buffers"] = 0.0
    if stage:
        found["buffers"] += low * min(train.zero.reduce_bucket_elements, shape.parameters) * (2 if train.zero.overlap_comm else 1)
    if stage == 3:
        found["buffers"] += low * min(_LIVE_PARAMETERS, shape.parameters)
    found["activations"] = rows * shape.activation_bytes_per_row * low / 4
    return found


def _stage(train: Train, ranks: int, device: str) -> int:
    if not uses_deepspeed(train, ranks, device):
        return 0
    return int(deepspeed_config(train, ranks, device)["zero_optimization"]["stage"])


# --- communication -----------------------------------------------------------------------------------------------


def sent_bytes(shape: Shape, train: Train, ranks: int, device: str, balancer: Balancer | None = None) -> dict[str, float]:
    """Bytes that a rank sends in a step, by what for: `gradients`, `parameters`, `balancer`.

    A reduction or a gathering of S bytes over n ranks costs each of them (n-1)/n S, an all-reduce is one of each: what no
    algorithm can do without (Patarasuk & Yuan, JPDC 2009), and what rings do. DeepSpeed all-reduces gradients at stages 1 and 2
    too, where a reduction would do: its buckets hold parts of several ranks. Gloo, on CPUs, all-reduces at stage 3 as well.
    """
    low = 4 if precision(train, device) == "fp32" else 2
    stage = _stage(train, ranks, device)
    share, scatter = (ranks - 1) / ranks, 2 if device == "cpu" else 1
    whole = share * shape.parameters * low
    # from stage 2 on every micro-batch is reduced, below only their sum
    gradients = {0: 2 * whole, 1: 2 * whole, 2: 2 * whole * train.accumulate, 3: scatter * whole * train.accumulate}[stage]
    # stages 1 and 2 gather parameters once a step; stage 3 in the forward pass, and what could not stay whole again in the backward
    again = 1 - min(1.0, _LIVE_PARAMETERS / shape.parameters)
    parameters = {0: 0.0, 1: whole, 2: whole, 3: (1 + again) * whole * train.accumulate}[stage]
    gram = 2 * share * balancer_elements(shape, balancer) * 4 * train.accumulate if balancer else 0.0
    return {"gradients": gradients, "parameters": parameters, "balancer": gram}


def balancer_elements(shape: Shape, balancer: Balancer) -> float:
    """Float32 numbers that a balancer's Gramian is summed over ranks from, in a micro-batch; the exact one on average over steps."""
    if not (balancer.needs_gram or balancer.needs_grads or balancer.probe_every):
        return 0.0
    source = balancer.gram.source if balancer.gram else balancer.default_gram if balancer.needs_gram else "representation"
    columns = balancer.gram.columns if balancer.gram else 64
    every = balancer.gram.every if balancer.gram else 1
    sketch = shape.tasks * shape.layer_outputs * (min(columns, shape.layer_inputs) + 1)
    exact = shape.tasks * shape.shared_parameters
    found = {"representation": shape.tasks**2, "last_layer": sketch, "exact": (sketch * (every - 1) + exact) / every}[source]
    return found + (exact / balancer.probe_every if balancer.probe_every else 0.0)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, nothing of it hidden behind anything else: an upper bound."""

    compute_s: float
    gradients_s: float
    parameters_s: float
    balancer_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.gradients_s + self.parameters_s + self.balancer_s


def step_seconds(shape: Shape, train: Train, machines: Machines, device: str, rows: float, balancer: Balancer | None = None) -> Step:
    """The seconds of a step of `rows` rows a rank and micro-batch.

    Ranks of a node share its network cards, and rings pass each node once: a node sends what a rank does. A small sum takes as long as
    a tree is deep, there and back.
    """
    sent = sent_bytes(shape, train, machines.ranks, device, balancer)
    second = {name: size / (machines.network_gb_s * GB) for name, size in sent.items()}
    deep = 2 * math.ceil(math.log2(machines.ranks)) * machines.hop_us * 1e-6 if machines.ranks > 1 else 0.0
    compute = 3 * shape.flops_per_row * rows * train.accumulate / (machines.rank_tflops * 1e12)
    asks = balancer is not None and balancer_elements(shape, balancer) > 0
    return Step(compute, second["gradients"], second["parameters"], second["balancer"] + (deep * train.accumulate if asks else 0.0))


# --- checkpoints, failures, goodput ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """A checkpoint: whole float32 tensors, gathered tensor by tensor, kept and written by the first rank (decision 001)."""

    size_bytes: float
    gather_s: float
    write_s: float

    @property
    def cost_s(self) -> float:
        """Seconds that training stands still, delta."""
        return self.gather_s + self.write_s


def saving(shape: Shape, machines: Machines) -> Saving:
    """What a checkpoint takes."""
    size = 4.0 * shape.parameters * (1 + shape.optimizer_states)
    share = (machines.ranks - 1) / machines.ranks
    write_s = machines.store_wait_s + size / (machines.store_write_gb_s * GB)
    return Saving(size, share * size / (machines.network_gb_s * GB), write_s)


def restart_s(shape: Shape, machines: Machines, replaced: bool = True) -> float:
    """Seconds from a failure to the next step, R: notice it, replace the node or not, start, read the checkpoint on every node."""
    size = 4.0 * shape.parameters * (1 + shape.optimizer_states)
    rate = min(machines.store_read_gb_s, machines.store_total_gb_s / machines.nodes) * GB
    return machines.notice_s + (machines.replace_s if replaced else 0.0) + machines.start_s + size / rate


def young_s(cost_s: float, mtbf_s: float) -> float:
    """The best time between checkpoints to first order: sqrt(2 delta M).

    Source: Young, A First Order Approximation to the Optimum Checkpoint Interval, CACM 17(9), 1974.
    """
    return math.sqrt(2 * cost_s * mtbf_s)


def daly_s(cost_s: float, mtbf_s: float) -> float:
    """The best time between checkpoints, seconds of training from one to the next.

    Source: Daly, A Higher Order Estimate of the Optimum Checkpoint Interval for Restart Dumps, FGCS 22(3), 2006, eq. 37.
    """
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = math.sqrt(cost_s / (2 * mtbf_s))
    return young_s(cost_s, mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - cost_s


def goodput(interval_s: float, cost_s: float, restart_s: float, mtbf_s: float) -> float:
    """The share of the time that is training which is kept, with a checkpoint each `interval_s` of it.

    Failures come at random (exponentially distributed), during checkpoints and restarts too.
    The time for an interval is expected to be M exp(R/M) (exp((tau + delta)/M) - 1).

    Source: Daly 2006, eq. 13.
    """
    exponent = (interval_s + cost_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 700:  # it never gets to the end of one
        return 0.0
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


@dataclass(frozen=True)
class Simulated:
    """What came of simulated runs."""

    goodput: float
    error: float
    """Standard error of the mean."""
    failures: float
    """A run, on average."""


def simulate(
    interval_s: float, cost_s: float, restart_s: float, mtbf_s: float, runs: int = 200, intervals: int = 200, seed: int = 0
) -> Simulated:
    """Live through `runs` runs of `intervals` checkpoints each, failure by failure, and see what share of the time was of use.

    A failure costs what was done since the last checkpoint, and a restart; a failure during a restart, another restart.
    """
    rng = np.random.default_rng(seed)
    shares, failures = np.empty(runs), 0
    for run in range(runs):
        clock, next_failure, done, restarting = 0.0, rng.exponential(mtbf_s), 0, False
        while done < intervals:
            span = restart_s if restarting else interval_s + cost_s
            undisturbed = min(int((next_failure - clock) // span), 1 if restarting else intervals - done)
            if undisturbed:
                clock += undisturbed * span
                done += 0 if restarting else undisturbed
                restarting = False
                continue
            clock, restarting, failures = next_failure, True, failures + 1
            next_failure = clock + rng.exponential(mtbf_s)
        shares[run] = intervals * interval_s / clock
    return Simulated(float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(runs)), failures / runs)


def elastic_goodput(interval_s: float, cost_s: float, stop_s: float, join_s: float, replace_s: float, machines: Machines) -> float:
    """As `goodput`, where the others go on without a lost node until another takes its place.

    A failure then stops everyone for `stop_s`, without the wait for the other node; letting that in stops them for `join_s`, with
    nothing lost, for the state is saved first; and in between one of the nodes is missing. To first order: as if no two of these met.
    """
    whole = goodput(interval_s, cost_s, stop_s, machines.mtbf_s)
    return whole * max(0.0, 1 - (join_s + replace_s / machines.nodes) / machines.mtbf_s)


def simulate_elastic(
    interval_s: float,
    cost_s: float,
    stop_s: float,
    join_s: float,
    replace_s: float,
    machines: Machines,
    runs: int = 100,
    failures: int = 200,
    seed: int = 0,
) -> Simulated:
    """Live through `runs` elastic runs of `failures` failures each; what two failures do to one another included."""
    rng = np.random.default_rng(seed)
    shares = np.empty(runs)
    for run in range(runs):
        clock, kept, fresh, saved_ago = 0.0, 0.0, 0.0, 0.0
        back: list[float] = []  # when lost nodes are replaced
        next_failure, seen = rng.exponential(machines.mtbf_s), 0
        while seen < failures:
            speed = max(0, machines.nodes - len(back)) / machines.nodes
            # train until the next checkpoint, failure or return, whichever is first
            until = min(clock + interval_s - saved_ago, next_failure, *back[:1])
            fresh, saved_ago = fresh + speed * (until - clock), saved_ago + until - clock
            clock = until
            if clock == next_failure:
                # what was done since the last checkpoint is lost, and a failure on the way back costs the way again
                fresh, saved_ago, seen = 0.0, 0.0, seen + 1
                back.append(clock + replace_s)
                clock += stop_s
                next_failure += rng.exponential(machines.mtbf_s)
                while next_failure < clock:
                    seen, clock = seen + 1, next_failure + stop_s
                    back.append(next_failure + replace_s)
                    next_failure += rng.exponential(machines.mtbf_s)
                continue
            pause = join_s if back and clock >= back[0] else cost_s
            if pause == join_s:
                back.pop(0)
            if clock + pause <= next_failure:
                clock, kept, fresh, saved_ago = clock + pause, kept + fresh, 0.0, 0.0
            else:  # it failed while it was saved
                clock = next_failure
        shares[run] = kept / clock
    return Simulated(float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(runs)), float(failures))


# --- rows --------------------------------------------------------------------------------------------------------


def shards_read(rows: int, shards: int, nodes: int, epochs: float = 1.0) -> float:
    """The share of a dataset's shards that a node is expected to read a row of.

    The order of rows is a permutation of all of them (`trainer.order`), so what a node reads of an epoch is a random sample:
    a shard of r rows is left out by it with probability (1 - 1/nodes)^r.
    """
    if nodes == 1 and epochs >= 1:
        return 1.0
    return -math.expm1(rows / shards * math.log1p(-min(1 - 1e-12, min(1.0, epochs) / nodes)) * max(1.0, epochs))
