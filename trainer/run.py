"""The loop: one rank of one training run, from a request to a result. Started by torchrun as `python -m trainer.run`.

A request (JSON) says everything a run depends on; the key of its result is a digest of it. The run
writes its result below the root, resumes from its newest whole checkpoint, and stops at a step boundary
when any rank is asked to.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.balance import Gramian, Look
from trainer.checkpoint import Checkpoints, Saved
from trainer.elastic import in_elastic_world
from trainer.engine import Engine, open_engine
from trainer.errors import CotrainError, DataError, Fault, LaunchError, Stopped, UserError
from trainer.feed import Feed, row_bytes
from trainer.joint import Batches, Joint, blank, build, counted, known, seed_of
from trainer.metrics_server import Metrics
from trainer.observe import emit, leave_word
from trainer.order import Order, share
from trainer.parts import ROW, Balancer, Optimizer, State, Sync
from trainer.plan import PhasePlan, learning_rate, plan_phase
from trainer.points import Place, lacking
from trainer.requests import read_request, spec_of
from trainer.results import Result, fetch, write_manifest
from trainer.shards import Split
from trainer.spec import JointSpec, Task
from trainer.startup import Startup
from trainer.step import StepLog, joint_step
from trainer.stores import open_store
from trainer.world import World, open_world

_CURVE_POINTS = 100
_METER_LOGS = 64  # steps that are added to the means at a time


class Data:
    """The prepared datasets of a run, read by row number as tensors on this rank's device."""

    def __init__(self, spec: JointSpec, prepared: Mapping[str, Result], device: torch.device) -> None:
        self._spec, self._device = spec, device
        self.manifests = {name: result.json("manifest.json") for name, result in prepared.items()}
        self.fitted = {name: result.json("fitted.json") for name, result in prepared.items()}
        self._reports = {name: result.json("report.json") for name, result in prepared.items()}
        self._splits = {
            (name, split): Split(result.folder, self.manifests[name], split)
            for name, result in prepared.items()
            for split in ("train", "valid")
        }

    def rows(self, name: str, split: str = "train") -> int:
        """Rows of a split."""
        return len(self._splits[name, split])

    def complete(self, task: Task) -> bool:
        """Whether no training row lacks the target of `task`."""
        return self._reports[task.data]["columns"][task.target]["splits"]["train"]["missing"] == 0

    def batch(self, name: str, split: str, rows: np.ndarray, tasks: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs and targets of `tasks` (those on this dataset) at the given rows."""
        inputs, targets = self.wanted(name, tasks)
        return {c: self._column(name, split, c, rows) for c in inputs}, {c: self._column(name, split, c, rows) for c in targets}

    def wanted(self, name: str, tasks: Sequence[str]) -> tuple[list[str], list[str]]:
        """Input and target columns that `tasks` need of a dataset."""
        here = [self._spec.columns(task) for task in tasks if self._spec.tasks[task].data == name]
        return list(dict.fromkeys(c for inputs, _ in here for c in inputs)), list(dict.fromkeys(c for _, targets in here for c in targets))

    def feed(self, name: str, tasks: Sequence[str], seed: int, world: World) -> Feed:
        """This rank's training rows of a dataset."""
        train, columns, fitted = self._spec.train, self._spec.data[name].columns, self.fitted[name]
        used = {c for part in self.wanted(name, tasks) for c in part}
        return Feed(
            lambda column, rows: self._column(name, "train", column, rows),
            Order(self.rows(name), seed, name),
            row_bytes([fitted[c]["shape"] for c in used]),
            frozenset(c for c in used if not columns[c].rowwise),
            train.batch,
            train.accumulate,
            world.size,
            world.rank,
        )

    def _column(self, name: str, split: str, column: str, rows: np.ndarray) -> Tensor:
        encoded = self._splits[name, split].gather(column, rows)
        return self._spec.data[name].columns[column].tensor(encoded, self.fitted[name][column]).to(self._device, non_blocking=True)


class Run:
    """A training run in progress on one rank."""

    def __init__(self, request: dict[str, Any], root: str, world: World, started: float, startup: Startup | None = None) -> None:
        self.request, self.root, self.world, self._started = request, root, world, started
        self._startup = startup or Startup(started)
        self.spec = spec_of(request)
        self.seed: int = request["seed"]
        self.key: str = request["key"]
        prepared = self._prepared()
        missing = [name for name, result in prepared.items() if result is None]
        if missing:
            raise DataError.at(f"data.{missing[0]}", f"is not prepared below {root}", "run the prepare step first")
        self.data = Data(self.spec, prepared, world.device)  # type: ignore[arg-type]
        self._check_rows()
        store = open_store(root)
        self.checkpoints = Checkpoints(store, f"checkpoints/{self.key}", self.spec.train.checkpoint.keep)
        who = {"role": request["role"], "task": request.get("task"), "seed": self.seed}
        self._who = {name: value for name, value in who.items() if value is not None}
        label = "-".join(str(v) for v in (self.spec.name, *self._who.values()))
        self.metrics = Metrics(label, list(self.spec.tasks), self.spec.observe.port) if world.first else None
        self.saved = Saved()
        self._spent: dict[str, float] = {}
        self._wanted: dict[tuple[str, tuple[int, ...]], dict[str, tuple[list[str], list[str]]]] = {}
        self._last_save = self._last_event = time.monotonic()

    def _prepared(self) -> dict[str, Result | None]:
        """The datasets, without their test rows: fetched by one rank of each machine, which all the others of it then read."""
        keys = {name: entry["key"] for name, entry in self.request["data"].items()}
        first = self.world.local_rank == 0
        found = {name: fetch(self.root, "data", key, _trains) for name, key in keys.items()} if first else {}
        self.world.barrier()
        return found or {name: fetch(self.root, "data", key, _trains, again=False) for name, key in keys.items()}

    def _check_rows(self) -> None:
        for name in self.request["data"]:
            if self.data.rows(name) == 0:
                raise DataError.at(f"data.{name}", "has no training rows", "lower split.valid and split.test")

    # --- one run -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train all phases and write the result.

        Raises:
            Stopped: on every rank, if any was asked to stop; the state is saved.
        """
        try:
            self._run()
        finally:
            if self.metrics:
                self.metrics.close()

    def _run(self) -> None:
        found = self._newest()
        if found:
            self.saved = found
            self._spent = dict(found.values["seconds"])
            self._emit("resumed", phase=found.phase, step=found.step)
        self._startup.done("data")
        rows = {name: self.data.rows(name) for name in self.request["data"]}
        self._clock = time.perf_counter() - (time.time() - self._started)
        parameters = 0
        if self.spec.rounds > 1:
            parameters = self._rounds(rows)
        for number, name in enumerate(self.spec.phases if self.spec.rounds == 1 else ()):
            if number < self.saved.phase:
                continue
            plan = plan_phase(self.spec, name, rows, self.seed)
            module = build(self.spec, self.data.fitted, seed=self.seed)
            parameters = sum(p.numel() for p in module.parameters())
            if self.saved.params:
                module.load_state_dict(self.saved.params)
            _let_learn(module, *self.spec.learning(name))
            self._phase(number, plan, module)
        if not parameters:
            parameters = sum(p.numel() for p in self.saved.params.values())
        if self.world.first:
            self._write(parameters)
        self.world.barrier()
        if self.world.first:
            self.checkpoints.clear()

    def _phase(self, number: int, plan: PhasePlan, module: Joint) -> None:
        """A phase with an engine and an optimiser of its own."""
        optimizer = self.spec.phases[plan.name].optimizer or self.spec.train.optimizer
        engine = self._open(module, optimizer, 0)
        stage = self._stage(number, plan, module, engine)
        self._emit("phase_started", phase=plan.name, step=stage.step, steps=plan.steps, tasks=list(plan.tasks))
        self._started_up()
        self._steps(stage, plan.steps, [stage])
        params = self._finish([stage])
        self.saved = Saved(phase=number + 1, params=params, values=self._totals([stage]), history=self.saved.history)
        self._finished(stage)
        if number + 1 < len(self.spec.phases):
            self._write_checkpoint()

    def _rounds(self, rows: Mapping[str, int]) -> int:
        """All phases in turn, again and again, with one engine for each set of parameters that learns; how many parameters there are."""
        spec, saved = self.spec, self.saved
        whole = build(spec, self.data.fitted, seed=self.seed)
        if saved.params:
            whole.load_state_dict(saved.params)
        parameters = sum(p.numel() for p in whole.parameters())
        if saved.phase:  # all rounds are done
            return parameters
        names = list(spec.phases)
        groups = [spec.learning(name) for name in names]
        distinct = [group for i, group in enumerate(groups) if group not in groups[:i]]
        modules = whole.split(distinct)
        optimizers = [spec.phases[names[groups.index(group)]].optimizer or spec.train.optimizer for group in distinct]
        engines = []
        for i, (module, group) in enumerate(zip(modules, distinct, strict=True)):
            _let_learn(module, *group)
            engines.append(self._open(module, optimizers[i], i))
        stages = []
        for number, (name, group) in enumerate(zip(names, groups, strict=True)):
            at = distinct.index(group)
            stages.append(self._stage(number, plan_phase(spec, name, rows, self.seed), modules[at], engines[at]))
        for stage in stages:
            self._emit("phase_started", phase=stage.plan.name, step=stage.step, steps=stage.plan.steps, tasks=list(stage.plan.tasks))
        self._started_up()
        learning = {id(m): [p for p in m.parameters() if p.requires_grad] for m in modules}
        turn: Joint | None = None
        for number in range(min(stage.step * spec.rounds // stage.plan.steps for stage in stages), spec.rounds):
            for stage in stages:
                if stage.module is not turn:  # what the others train is only called: no gradient goes into it
                    turn = stage.module
                    for module in modules:
                        for p in learning[id(module)]:
                            p.requires_grad_(module is turn)
                self._steps(stage, stage.plan.steps // spec.rounds * (number + 1), stages)
        params = self._finish(stages)
        self.saved = Saved(phase=len(stages), params=params, values=self._totals(stages), history=saved.history)
        for stage in stages:
            self._finished(stage)
        return parameters

    def _open(self, module: Joint, optimizer: Optimizer, number: int) -> Engine:
        """An engine that goes on where the checkpoint left it."""
        module.ranks = self.world.size
        engine = open_engine(module, optimizer, self.spec.train, self.world.size, self.world.device)
        own = {name for name, _ in module.named_parameters()}
        if self.saved.step:
            optimizer_state = {name: v for name, v in self.saved.optimizer.items() if name.partition("/")[2] in own}
            engine.restore(optimizer_state, self.saved.values["engines"][number])
        if self.saved.params:
            engine.restore_master({name: v for name, v in self.saved.params.items() if name in own})
        return engine

    def _stage(self, number: int, plan: PhasePlan, module: Joint, engine: Engine) -> _Stage:
        """A phase at its beginning, or where the checkpoint left it."""
        spec, world, saved = self.spec, self.world, self.saved
        part = spec.phases[plan.name]
        resumed: dict[str, Any] = saved.values["stages"][plan.name] if saved.step else {}

        def kept(prefix: str) -> dict[str, Any]:
            found = {name.removeprefix(prefix): v for name, v in saved.balancer.items() if name.startswith(prefix)}
            return {name: v.to(world.device) if isinstance(v, Tensor) else v for name, v in found.items()}

        state = kept(f"{plan.name}/balancer/") if resumed else part.balancer.init(plan.tasks)
        state = {name: v.to(world.device) if isinstance(v, Tensor) else v for name, v in state.items()}
        syncs = []
        for i, sync in enumerate(part.syncs):
            pieces = _followed(engine, sync, spec)
            if not resumed:
                syncs.append(sync.init(pieces))
                continue
            whole = kept(f"{plan.name}/sync{i}/")
            cut = engine.cut({name: v for name, v in whole.items() if isinstance(v, Tensor)})
            syncs.append({**whole, **cut})
        tasks = {name: spec.tasks[name] for name in plan.tasks}
        return _Stage(
            number=number,
            plan=plan,
            module=module,
            engine=engine,
            optimizer=part.optimizer or spec.train.optimizer,
            state=state,
            syncs=syncs,
            stopper=_EarlyStop(spec, resumed.get("early_stop")),
            best=saved.best if resumed else {},
            feeds={name: self.data.feed(name, plan.tasks, self.seed, world) for name in plan.datasets},
            tasks=tasks,
            gram=_gramian(part.balancer, plan, module, spec),
            complete=frozenset(name for name, task in tasks.items() if task.objective.counts_rows and self.data.complete(task)),  # type: ignore[union-attr]
            validates=self._can_validate(plan),
            meter=_Meter(list(plan.tasks), world.device, resumed.get("curve")),
            present_S=[tuple(np.flatnonzero(row).tolist()) for row in plan.present_ST],
            seed=seed_of(self.seed, plan.name, "rank", world.rank),
            step=resumed.get("step", 0),
            ended=resumed.get("ended", False),
        )

    def _started_up(self) -> None:
        self._lap("start")
        self._startup.done("engine")

    def _steps(self, stage: _Stage, until: int, stages: Sequence[_Stage]) -> None:
        """Train a phase up to a step. THE loop.

        Raises:
            Stopped: on every rank, if any was asked to stop; the state of all `stages` is saved.
        """
        spec, world, plan, engine = self.spec, self.world, stage.plan, stage.engine
        part = spec.phases[plan.name]
        moving = stage.moving
        meter, tasks, gram = stage.meter, stage.tasks, stage.gram
        every = plan.validate_every(spec.train)
        curve_every = max(1, plan.steps // _CURVE_POINTS)
        look_every = 1 if world.device.type == "cpu" else 10  # reading the flags waits for the GPU
        while stage.step < until and not stage.ended:
            step = stage.step
            _reseed((stage.seed + step) & (2**63 - 1), world.device)
            lr = learning_rate(spec, stage.optimizer.lr, step, plan.steps)
            asks = (world.stop_asked, world.first and self._time_to_save())
            batches = self._micro_batches(plan, step, stage.present_S[step], stage.feeds)
            log, stage.state = joint_step(
                engine, world, tasks, stage.present_S[step], batches, part.balancer, stage.state, lr, asks, gram, step, stage.complete
            )
            if "first step" not in self._startup.seconds:
                self._startup.done("first step")
                self._emit("first_step", seconds=self._startup.seconds)
            world.share(moving)  # running statistics: each rank has seen rows of its own
            for i, sync in enumerate(part.syncs):
                stage.syncs[i] = sync.follow(_followed(engine, sync, spec), stage.syncs[i])
            meter.add(log)
            step = stage.step = step + 1
            if log.look:
                self._looked(plan, step, log.look)
            last = step == plan.steps
            if step % curve_every == 0 or last:
                self._curve(plan, step, lr, meter)
            if world.first and (last or time.monotonic() - self._last_event >= spec.observe.every_s):
                self._last_event = time.monotonic()
                self._progress(plan, step, lr, meter, _fallbacks(stage.state))
            if stage.validates and (step % every == 0 or last):
                self._lap("train")
                improved = self._validate(plan, step, engine, stage.stopper)
                if spec.train.early_stop and improved:
                    stage.best = engine.export(optimizer=False)[0] | _copies(_buffers(stage.module))
                stage.ended = bool(spec.train.early_stop) and stage.stopper.waited >= spec.train.early_stop.patience  # type: ignore[union-attr]
                self._lap("validate")
            if world.size == 1:
                stop, save = asks
            else:
                stop, save = (log.asked > 0).tolist() if step % look_every == 0 else (False, False)
            due = spec.train.checkpoint.every_steps
            if stop or save or (due and step % due == 0 and not last):
                self._lap("train")
                self._save(stages)
            if stop:
                for engine in {id(s.engine): s.engine for s in stages}.values():
                    engine.close()
                raise Stopped(f"stopped at step {step} of {plan.steps} of phase '{plan.name}'; the same command goes on from there")

    def _finish(self, stages: Sequence[_Stage]) -> dict[str, Tensor]:
        """The parameters and buffers that phases leave, with what is published instead of them; their engines are closed."""
        self._lap("train")
        params: dict[str, Tensor] = {}
        for stage in _one_each(stages):
            params |= stage.best or stage.engine.export(optimizer=False)[0] | _copies(_buffers(stage.module))
        for stage in stages:
            for sync, state in zip(self.spec.phases[stage.plan.name].syncs, stage.syncs, strict=True):
                params |= sync.published(_whole(stage.engine, state))
        for stage in _one_each(stages):
            stage.engine.close()
        return params

    def _totals(self, stages: Sequence[_Stage]) -> dict[str, Any]:
        """What the result says of the phases up to now."""
        values = self.saved.values
        done, planned, trained = (dict(values.get(name, {})) for name in ("steps", "steps_planned", "task_steps"))
        samples = values.get("samples", 0)
        for stage in stages:
            plan = stage.plan
            done[plan.name], planned[plan.name] = stage.step, plan.steps
            for t, name in enumerate(plan.tasks):
                trained[name] = trained.get(name, 0) + int(plan.present_ST[: stage.step, t].sum())
            samples += self._samples_of(plan, stage.step)
        return {"steps": done, "steps_planned": planned, "task_steps": trained, "samples": samples}

    def _finished(self, stage: _Stage) -> None:
        plan = stage.plan
        self._emit(
            "phase_finished", phase=plan.name, step=stage.step, steps=plan.steps, stopped_early=stage.ended, **_fallbacks(stage.state)
        )

    # --- rows ----------------------------------------------------------------------------------------------------

    def _micro_batches(self, plan: PhasePlan, step: int, present: tuple[int, ...], feeds: dict[str, Feed]) -> list[Batches]:
        wanted = self._wanted.get((plan.name, present))
        if wanted is None:
            tasks = [plan.tasks[t] for t in present]
            wanted = {name: self.data.wanted(name, tasks) for d, name in enumerate(plan.datasets) if plan.present_SD[step, d]}
            self._wanted[plan.name, present] = wanted
        drawn = {name: int(n) for name, n in zip(feeds, plan.drawn_SD[step], strict=True)}
        batches: list[Batches] = [
            {name: tuple(feeds[name].take(drawn[name], micro, columns) for columns in parts) for name, parts in wanted.items()}  # type: ignore[misc]
            for micro in range(self.spec.train.accumulate)
        ]
        if self._draws(plan):
            first = seed_of(self.seed, plan.name, "noise", step) >> 1  # leaves room to count on
            for micro, batch in enumerate(batches):
                for name, (inputs, _) in batch.items():
                    inputs[ROW] = torch.from_numpy(first + feeds[name].places(micro)).to(self.world.device)  # type: ignore[index]
        return batches

    def _draws(self, plan: PhasePlan) -> bool:
        """Whether a task of a phase draws noise."""
        return any(self.spec.tasks[task].objective.draws for task in plan.tasks)  # type: ignore[union-attr]

    def _samples_of(self, plan: PhasePlan, step: int) -> int:
        return int(plan.drawn_SD[step].sum()) * self.spec.train.batch

    # --- validation ----------------------------------------------------------------------------------------------

    def _can_validate(self, plan: PhasePlan) -> bool:
        return all(self.data.rows(name, "valid") for name in plan.datasets)

    def _validate(self, plan: PhasePlan, step: int, engine: Engine, stopper: _EarlyStop) -> bool:
        spec, world = self.spec, self.world
        loss: dict[str, float] = {}
        metric: dict[str, float] = {}
        for name in plan.datasets:
            tasks = [t for t in plan.tasks if spec.tasks[t].data == name]
            total, count = torch.zeros(len(tasks), device=world.device), torch.zeros(len(tasks), device=world.device)
            scores: dict[str, list[tuple[Tensor, Tensor]]] = {t: [] for t in tasks}
            rows = self.data.rows(name, "valid")
            width = max(4 * spec.train.batch, world.size)  # no gradients: room for more rows at a time
            for start in range(0, rows, width):
                chosen = np.arange(start, min(start + width, rows))
                mine = chosen[share(len(chosen), world.size, world.rank)]
                # a rank with no row left still goes through the modules, as sharded parameters need
                inputs, targets = self.data.batch(name, "valid", mine if len(mine) else chosen[:1], tasks)
                if self._draws(plan):
                    inputs[ROW] = torch.from_numpy(mine if len(mine) else chosen[:1]).to(world.device)
                sums, outputs = engine.call(tasks, {name: (inputs, targets)})
                if not len(mine):
                    continue
                total += sums.float()
                for t, task in enumerate(tasks):
                    objective = spec.tasks[task].objective
                    count[t] += counted(spec.tasks[task], (inputs, targets))
                    if not spec.tasks[task].judged:
                        continue
                    if objective.wide:  # type: ignore[union-attr]
                        score, truth = outputs[task]
                    else:
                        score, truth = objective.predict(outputs[task]), targets[spec.tasks[task].target]  # type: ignore[union-attr,index]
                    scores[task].append((score.cpu(), truth.cpu()))
            total, count = world.sum(total, count)
            loss |= {task: float(s / n) for task, s, n in zip(tasks, total, count, strict=True) if n}
            for task in (t for t in tasks if spec.tasks[t].judged):
                pairs = [pair for part in world.gather(scores[task]) for pair in part]
                if world.first:
                    metric[task] = self._primary(task, pairs)
        record = {
            "split": "valid",
            "phase": plan.name,
            "step": step,
            "samples": self._all_samples(plan, step),
            "seconds": self._trained_s(),
        }
        self.saved.history.append(record | {"loss": _plain(loss), "metric": _plain(metric)})
        if world.first:
            self._emit("validated", phase=plan.name, step=step, loss=_short(loss), metric=_short(metric))
            if self.metrics:
                self.metrics.validated(loss)
        return stopper.improved(loss)

    def _primary(self, task: str, pairs: list[tuple[Tensor, Tensor]]) -> float:
        part = self.spec.tasks[task]
        score, target = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        fitted = self.data.fitted[part.data].get(part.target or "", {})
        kind = self.spec.judged_as(task)
        there = known(target)
        if not there.any():
            return math.nan
        score, target = score[there], target[there]
        if kind == "number":
            score, target = (x * fitted["std"] + fitted["mean"] for x in (score, target))
        # the resampled form, with each row once: it needs no torchmetrics, which takes as long to import as torch
        once = torch.ones(1, len(target))
        return float(part.metrics[0].resampled(score, target, len(fitted.get("classes", ())), once)[0])  # type: ignore[index]

    # --- what is kept and said -----------------------------------------------------------------------------------

    def _time_to_save(self) -> bool:
        minutes = self.spec.train.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._last_save > 60 * minutes

    def _save(self, stages: Sequence[_Stage]) -> None:
        """Write a checkpoint of all phases in progress."""
        params: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}
        best: dict[str, Tensor] = {}
        kept: dict[str, Any] = {}
        engines: list[dict[str, Any]] = []
        for stage in _one_each(stages):
            found = stage.engine.export(keep=self.world.first)
            params |= found[0] | _copies(_buffers(stage.module))
            optimizer |= found[1]
            engines.append(found[2])
        for stage in stages:
            best |= stage.best
            kept |= {f"{stage.plan.name}/balancer/{name}": v.cpu() if isinstance(v, Tensor) else v for name, v in stage.state.items()}
            for i, state in enumerate(stage.syncs):
                kept |= {f"{stage.plan.name}/sync{i}/{name}": v for name, v in _whole(stage.engine, state).items()}
        if self.world.first:
            said = {
                stage.plan.name: {
                    "step": stage.step,
                    "early_stop": stage.stopper.state(),
                    "ended": stage.ended,
                    "curve": stage.meter.state(),
                }
                for stage in stages
            }
            values = self.saved.values | {"stages": said, "engines": engines}
            step = sum(stage.step for stage in stages)
            self._write_saved(Saved(min(stage.number for stage in stages), step, params, optimizer, best, kept, values, self.saved.history))
        self._lap("checkpoint")

    def _write_checkpoint(self) -> None:
        if self.world.first:
            self._write_saved(self.saved)

    def _write_saved(self, saved: Saved) -> None:
        started = time.perf_counter()
        saved.values = saved.values | {"seconds": self._spent}
        key = self.checkpoints.save(saved)
        self._last_save = time.monotonic()
        seconds = time.perf_counter() - started
        self._emit("checkpoint", key=key, step=saved.step, seconds=round(seconds, 3))
        if self.metrics:
            self.metrics.saved(seconds)

    def _newest(self) -> Saved | None:
        """The checkpoint that the first rank chose, read by each rank: first by one of each machine, which may have to fetch it."""
        name = self.world.gather(self.checkpoints.latest() if self.world.first else None)[0]
        if name is None:
            return None
        # choosing it, the first rank has fetched it and read it through
        early = self.checkpoints.read(name, again=not self.world.first) if self.world.local_rank == 0 else None
        self.world.barrier()
        return early or self.checkpoints.read(name, again=False)

    def _curve(self, plan: PhasePlan, step: int, lr: float, meter: _Meter) -> None:
        loss, weight = meter.window()
        record = {
            "split": "train",
            "phase": plan.name,
            "step": step,
            "samples": self._all_samples(plan, step),
            "seconds": self._trained_s(),
        }
        self.saved.history.append(record | {"loss": _plain(loss), "weight": _plain(weight), "lr": lr})

    def _looked(self, plan: PhasePlan, step: int, look: Look) -> None:
        tasks = [plan.tasks[t] for t in look.present]
        cosine = {a: dict(zip(tasks, row, strict=True)) for a, row in zip(tasks, look.cosine_PP.tolist(), strict=True)}
        faithful, worse = float(look.cosine), float(look.worse)
        self.saved.history.append(
            {"split": "look", "phase": plan.name, "step": step, "cosine": cosine, "faithful": faithful, "worse": worse}
        )
        if self.metrics:
            self.metrics.looked(cosine, faithful, worse)

    def _progress(self, plan: PhasePlan, step: int, lr: float, meter: _Meter, told: dict[str, int]) -> None:
        loss, weight, steps, seconds = meter.recent()
        rows = self._samples_of(plan, step) - self._samples_of(plan, step - steps)
        rate = rows / max(seconds, 1e-9)
        self._emit(
            "progress",
            phase=plan.name,
            step=step,
            steps=plan.steps,
            loss=_short(loss),
            weight=_short(weight),
            rows_per_second=round(rate, 1),
            **told,
        )
        if self.metrics:
            self.metrics.trained(steps, rows, rate, lr, loss, weight)
            self.metrics.fell_back(plan.name, told.get("fallbacks", 0))

    def _all_samples(self, plan: PhasePlan, step: int) -> int:
        return self.saved.values.get("samples", 0) + self._samples_of(plan, step)

    def _trained_s(self) -> float:
        return round(self._spent.get("train", 0.0) + time.perf_counter() - self._clock, 3)

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self._add(name, now - self._clock)
        self._clock = now

    def _add(self, name: str, seconds: float) -> None:
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    def _emit(self, event: str, **fields: Any) -> None:
        if self.world.first:
            emit(event, **self._who, **fields)

    def _flops(self) -> int | None:
        try:
            return flops_per_row(self.spec, self.data.fitted)
        except Exception:  # a model of the user's own may need more than shapes: no reason to lose what was trained
            return None

    def _write(self, parameters: int) -> None:
        values = self.saved.values
        self._spent["total"] = sum(v for name, v in self._spent.items() if name != "total")
        tasks = self.spec.judged_tasks
        result = {
            "key": self.key,
            "name": self.spec.name,
            **{name: self.request.get(name) for name in ("role", "task", "seed")},
            "spec": self.spec.to_json(),
            "data": {
                name: {"key": entry["key"], "digest": self.data.manifests[name]["digest"], "rows": self.data.manifests[name]["rows"]}
                for name, entry in self.request["data"].items()
            },
            "fitted": self.data.fitted,
            "tasks": tasks,
            "ranks": self.world.size,
            "device": str(self.world.device.type),
            "parameters": parameters,
            "flops_per_row": self._flops(),
            **{name: values[name] for name in ("steps", "steps_planned", "task_steps", "samples")},
            "seconds": {name: round(v, 3) for name, v in self._spent.items()},
        }
        with tempfile.TemporaryDirectory(prefix="cotrain-train-") as scratch:
            folder = Path(scratch)
            kept = {name: v.contiguous() for name, v in self.saved.params.items() if self.spec.kept(name)}
            save_file(kept, folder / "model.safetensors")
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.saved.history))
            write_manifest(folder, "train", self.key)
            open_store(self.root).upload(folder, f"results/train/{self.key}")
        self._emit("trained", key=self.key, seconds=result["seconds"])


@dataclass
class _Stage:
    """A phase in progress."""

    number: int
    plan: PhasePlan
    module: Joint
    engine: Engine
    optimizer: Optimizer
    state: dict[str, Any]
    """Of the balancer."""
    syncs: list[dict[str, Any]]
    stopper: _EarlyStop
    best: dict[str, Tensor]
    feeds: dict[str, Feed]
    tasks: dict[str, Task]
    gram: Gramian | None
    complete: frozenset[str]
    """Tasks none of whose training rows lacks a target."""
    validates: bool
    meter: _Meter
    present_S: list[tuple[int, ...]]
    seed: int
    step: int
    ended: bool

    @cached_property
    def moving(self) -> list[Tensor]:
        """Running statistics that its steps change."""
        return [b for b in self.module.statistics() if b.is_floating_point()]


def _one_each(stages: Sequence[_Stage]) -> list[_Stage]:
    """A stage for each engine."""
    return list({id(stage.engine): stage for stage in reversed(stages)}.values())[::-1]


def _followed(engine: Engine, sync: Sync, spec: JointSpec) -> dict[str, Tensor]:
    """This rank's pieces of the parameters that a sync follows."""
    heads = tuple(f"heads.{name}." for name, task in spec.tasks.items() if task.model == sync.of)
    return {name: piece for name, piece in engine.pieces().items() if name.startswith((f"models.{sync.of}.", *heads))}


def _whole(engine: Engine, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a sync with whole tensors. Collective."""
    return state | engine.join({name: v for name, v in state.items() if isinstance(v, Tensor)})


def _let_learn(module: Joint, models: set[str], heads: set[str]) -> None:
    """Parameters of these models and heads require gradients, and no others."""
    for name, p in module.named_parameters():
        family, part = name.split(".")[:2]
        p.requires_grad_(part in (models if family == "models" else heads))


class _EarlyStop:
    """Watches the mean over tasks of validation loss, each as a share of its first value."""

    def __init__(self, spec: JointSpec, state: dict[str, Any] | None) -> None:
        self._min_delta = spec.train.early_stop.min_delta if spec.train.early_stop else 0.0
        self._first: dict[str, float] = (state or {}).get("first", {})
        self._best: float | None = (state or {}).get("best")
        self.waited: int = (state or {}).get("waited", 0)

    def improved(self, loss: dict[str, float]) -> bool:
        if not loss:  # no row has a target: nothing says that it is worse
            return True
        self._first = {task: max(value, 1e-12) for task, value in loss.items()} | self._first
        mean = sum(value / self._first[task] for task, value in loss.items()) / len(loss)
        better = self._best is None or mean < self._best - self._min_delta
        self._best, self.waited = (mean, 0) if better else (self._best, self.waited + 1)
        return better

    def state(self) -> dict[str, Any]:
        return {"first": self._first, "best": self._best, "waited": self.waited}


class _Meter:
    """Mean losses and weights over two windows: one for curves (by steps), one for progress (by time)."""

    def __init__(self, tasks: list[str], device: torch.device, curve: list[list[float]] | None) -> None:
        self._tasks = tasks
        self._zero = lambda: torch.zeros(4, len(tasks), dtype=torch.float64, device=device)
        self._curve, self._recent = self._zero(), self._zero()
        if curve:
            self._curve += torch.tensor(curve, dtype=torch.float64, device=device)
        self._logs: list[StepLog] = []
        self._steps, self._since = 0, time.perf_counter()

    def add(self, log: StepLog) -> None:
        self._logs.append(log)
        self._steps += 1
        if len(self._logs) == _METER_LOGS:
            self._sum_up()

    def _sum_up(self) -> None:
        if not self._logs:
            return
        total_ST, count_ST, weight_ST = (
            torch.stack([getattr(log, name) for log in self._logs]) for name in ("total_T", "count_T", "weight_T")
        )
        # float64: the means don't depend on where a window or a resumed run cuts the sums
        sums = torch.stack([total_ST, count_ST, weight_ST, count_ST > 0]).sum(1, dtype=torch.float64)
        self._curve += sums
        self._recent += sums
        self._logs = []

    def state(self) -> list[list[float]]:
        self._sum_up()
        return self._curve.tolist()

    def window(self) -> tuple[dict[str, float], dict[str, float]]:
        self._sum_up()
        loss, weight = self._means(self._curve)
        self._curve = self._zero()
        return loss, weight

    def recent(self) -> tuple[dict[str, float], dict[str, float], int, float]:
        self._sum_up()
        loss, weight = self._means(self._recent)
        steps, seconds = self._steps, time.perf_counter() - self._since
        self._recent, self._steps, self._since = self._zero(), 0, time.perf_counter()
        return loss, weight, steps, seconds

    def _means(self, sums: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        total, count, weight, steps = sums.tolist()
        seen = [t for t in range(len(self._tasks)) if count[t]]
        return {self._tasks[t]: total[t] / count[t] for t in seen}, {self._tasks[t]: weight[t] / steps[t] for t in seen}


def _trains(file: str) -> bool:
    """Whether a file of prepared data is of use to training."""
    return not file.startswith(("test-", "raw-test-"))


def _gramian(balancer: Balancer, plan: PhasePlan, module: Joint, spec: JointSpec) -> Gramian | None:
    """What the Gramians of a phase are made of; None where no gradient is weighed or looked at.

    Raises:
        LaunchError: where a model has no last shared layer, or nothing of the name that the document gives.
    """
    if not (balancer.needs_gram or balancer.needs_grads or balancer.probe_every):
        return None
    asked = balancer.asked_gram()
    places = {}
    for model in dict.fromkeys(m for task in plan.tasks if (m := spec.tasks[task].model) is not None):
        missing = lacking(module.models[model], f"model '{model}'", asked.source, asked.layer, asked.point or ())
        if missing:
            place = f"phases.{plan.name}.balancer.gram"
            raise LaunchError(Fault(f"{place}.{field}" if field else place, finding, remedy) for field, finding, remedy in missing)
        places[model] = Place(module.models[model], asked.source, asked.layer, asked.point or ())
    return Gramian(asked.source, asked.columns, places, asked.every, balancer.probe_every)


def _fallbacks(state: State) -> dict[str, int]:
    """How often a balancer found no weights, where it counts that."""
    return {"fallbacks": int(state["fallbacks"])} if "fallbacks" in state else {}


def _reseed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which formats a stack trace each time it is called."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _buffers(module: Joint) -> dict[str, Tensor]:
    kept = module.state_dict()
    return {name: b for name, b in module.named_buffers() if name in kept}


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().clone() for name, t in tensors.items()}


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """Values for JSON, which has no NaN and no infinity."""
    return {name: v if math.isfinite(v) else None for name, v in values.items()}


def _short(values: dict[str, float]) -> dict[str, float | None]:
    return {name: v if v is None else float(f"{v:.5g}") for name, v in _plain(values).items()}


def flops_per_row(spec: JointSpec, fitted: Mapping[str, Any]) -> int:
    """Floating-point operations of predicting all tasks of a document for one row (of each dataset).

    Counted by torch on tensors without memory; operations it has no formula for (activations, norms) count as none.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module = build(spec, fitted).eval()
        for data in spec.data:
            tasks = [name for name, task in spec.tasks.items() if task.data == data]
            tasks = [name for name in tasks if spec.tasks[name].judged]
            inputs = {c: blank(fitted[data][c], "meta") for name in tasks for c in spec.columns(name)[0]}
            if tasks:
                module.outputs(tasks, inputs)
    return int(counter.get_total_flops())


def main() -> int:
    """Run one rank; what went wrong is left in the folder COTRAIN_FAILURES names, for the launcher to read."""
    started = float(os.environ.get("COTRAIN_STARTED", time.time()))
    startup = Startup(started)
    startup.done("processes", psutil.Process().create_time())
    startup.done("imports")
    root, key = sys.argv[1:3]
    torch.set_num_threads(int(os.environ.get("COTRAIN_THREADS", "0")) or torch.get_num_threads())
    world = None
    try:
        request = read_request(root, key)
        cluster = spec_of(request).cluster
        world = open_world(cluster.gpus_per_node, cluster.peer_timeout_s)
        startup.done("ranks")
        Run(request, root, world, started, startup).run()
    except Exception as error:
        leave_word(f"rank-{os.environ.get('RANK', '0')}", error)
        if isinstance(error, Stopped):
            if world:
                with suppress(RuntimeError):  # nobody leaves before the state is written: torchrun soon kills whoever stays
                    world.barrier()
            # torchrun takes success on one node for a reason to wait five minutes for the others
            several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
            return error.exit_code if several or in_elastic_world() else 0
        print(error, file=sys.stderr) if isinstance(error, UserError) else traceback.print_exc()
        return error.exit_code if isinstance(error, CotrainError) else 1
    finally:
        if world:
            world.close()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is written; taking thousands of modules apart would take about a second
