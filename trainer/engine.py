"""Engines: the forward pass, the gradients and the optimiser of one phase, sharded or not. The only file that imports deepspeed.

What an engine saves is independent of how it shards: full float32 tensors by parameter name. So a
checkpoint can be read at any world size and ZeRO stage, and holds no pickle.

Two engines have one behaviour (a test holds them to it): with one process, float32 and nothing
offloaded there is nothing to shard or reduce, and plain torch does the same arithmetic without
DeepSpeed's fixed cost of a step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.joint import Batches, Joint
from trainer.parts import Optimizer
from trainer.plan import deepspeed_config, uses_deepspeed
from trainer.spec import Train

Exported = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]
"""Parameters by name, optimiser state by `<state>/<name>`, and plain values; tensors on the CPU, float32, whole."""


class Engine(Protocol):
    """What a step needs of an engine."""

    module: Joint

    @property
    def scale(self) -> float:
        """What gradients are multiplied by inside a backward pass: the loss scale of fp16, else 1."""

    def repeatable(self) -> AbstractContextManager[None]:
        """Surrounds a backward pass through a part of the model that is gone through again afterwards."""

    def losses(self, tasks: Sequence[str], batches: Batches) -> Tensor:
        """Summed losses `[T]` of a micro-batch, with a graph."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (a local share: gradients are averaged over ranks)."""

    def step(self, lr: float, boundary: bool) -> None:
        """End a micro-batch; at a boundary clip, update the parameters and forget the gradients."""

    def call(self, tasks: Sequence[str], batches: Batches) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses and head outputs without a graph, in evaluation mode. Collective under ZeRO-3."""

    def export(self, optimizer: bool = True, keep: bool = True) -> Exported:
        """Everything that training goes on from. Collective; every rank gets the same tensors, if it is to `keep` them."""

    def restore(self, state: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over exported optimiser state and values; parameters come in through the module. Collective."""

    def restore_master(self, params: dict[str, Tensor]) -> None:
        """Set the float32 master copies: in low precision the module's own values are rounded. Collective."""

    def pieces(self) -> dict[str, Tensor]:
        """This rank's piece of each trainable parameter as it is now: whole, or a flat slice of it. To be read only."""

    def join(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors cut like `pieces`, whole, float32, on the CPU. Collective."""

    def cut(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's pieces of whole tensors, by parameter name: undoes `join`."""

    def close(self) -> None:
        """Free what the engine holds."""


def open_engine(module: Joint, optimizer: Optimizer, train: Train, ranks: int, device: torch.device) -> Engine:
    """The engine for a module whose trainable parameters require gradients."""
    module.to(device)
    if uses_deepspeed(train, ranks, device.type):
        return _DeepSpeedEngine(module, optimizer, train, ranks, device)
    return _TorchEngine(module, optimizer, train)


def init_distributed(device: torch.device, timeout_s: float) -> None:
    """Join the process group through DeepSpeed, without waiting for its compiler. Ranks wait `timeout_s` for one another."""
    deepspeed = _deepspeed(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, verbose=False, timeout=timedelta(seconds=timeout_s))


def _deepspeed(device: torch.device) -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    if device.type == "cpu":
        # An empty table of usable ops: DeepSpeed then takes gloo as it is, instead of compiling a shared-memory
        # collective at first use, which needs g++, takes minutes, and leaves a lock behind when killed.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _evaluate(module: nn.Module, call: Any) -> Any:
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            return call()
    finally:
        module.train(was)


class _TorchEngine:
    def __init__(self, module: Joint, optimizer: Optimizer, train: Train) -> None:
        self.module = module
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._params = list(self._named.values())
        self._optimizer = optimizer.build(self._params)
        self._names = optimizer.state_names
        self._clip = train.clip
        module.train()

    @property
    def scale(self) -> float:
        return 1.0

    def repeatable(self) -> AbstractContextManager[None]:
        return nullcontext()

    def losses(self, tasks: Sequence[str], batches: Batches) -> Tensor:
        return self.module(tasks, batches)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, boundary: bool) -> None:
        if not boundary:
            return
        for p in self._params:
            if p.grad is None:  # a head whose task was absent: a zero gradient, as in a sharded engine
                p.grad = torch.zeros_like(p)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._params, self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        for p in self._params:
            p.grad = None

    def call(self, tasks: Sequence[str], batches: Batches) -> tuple[Tensor, dict[str, Tensor]]:
        return _evaluate(self.module, lambda: self.module(tasks, batches, outputs=True))

    def export(self, optimizer: bool = True, keep: bool = True) -> Exported:
        params = {name: p.detach().float().cpu().clone() for name, p in self.module.named_parameters()}
        state: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, p in self._named.items() if optimizer else ():
            entry = self._optimizer.state.get(p, {})
            state |= {f"{s}/{name}": entry[s].detach().cpu().clone() for s in self._names if isinstance(entry.get(s), Tensor)}
            if "step" in entry:
                values["optimizer_step"] = float(entry["step"])
        return params, state, values

    def restore(self, state: dict[str, Tensor], values: dict[str, Any]) -> None:
        for name, p in self._named.items():
            entry = {s: state[f"{s}/{name}"].to(p).clone() for s in self._names if f"{s}/{name}" in state}
            if entry and "optimizer_step" in values:
                entry["step"] = torch.tensor(values["optimizer_step"], dtype=torch.float32)
            if entry:
                self._optimizer.state[p] = entry

    def restore_master(self, params: dict[str, Tensor]) -> None:
        pass  # the module's own values are the master copies

    def pieces(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._named.items()}

    def join(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: piece.float().cpu().clone() for name, piece in pieces.items()}

    def cut(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._named[name].device) for name, value in whole.items()}

    def close(self) -> None:
        pass


class _DeepSpeedEngine:
    def __init__(self, module: Joint, optimizer: Optimizer, train: Train, ranks: int, device: torch.device) -> None:
        deepspeed = _deepspeed(device)
        if not dist.is_initialized():
            group_of_one(device)
        self.module = module
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # as they came in: in low precision DeepSpeed rounds the module's own, and what is frozen must not move
        self._frozen = {name: p.detach().float().cpu().clone() for name, p in module.named_parameters() if not p.requires_grad}
        self._shapes = {name: p.shape for name, p in module.named_parameters()}
        self._config = deepspeed_config(train, ranks, device.type)
        self._stage = self._config["zero_optimization"]["stage"]
        self._names = optimizer.state_names
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer.build(list(self._named.values())), config=self._config, dist_init_required=False
        )
        self._engine.train()

    @property
    def scale(self) -> float:
        return float(self._optimizer.loss_scale) if self._config["fp16"]["enabled"] else 1.0

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        # at stage 3 each module counts down to the backward pass that gathers its parameters, and to the one that frees them
        counters = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
        modules = self.module.modules() if self._stage == 3 else ()
        before = [(m, {name: vars(m)[name] for name in counters if name in vars(m)}) for m in modules]
        yield
        for m, counts in before:
            vars(m).update(counts)

    def losses(self, tasks: Sequence[str], batches: Batches) -> Tensor:
        return self._engine(tasks, batches)

    def backward(self, loss: Tensor) -> None:
        # the loss is already a share of the whole step, so it is not divided by the number of micro-batches
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float, boundary: bool) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        if boundary:
            self._forget_gradients()

    def _forget_gradients(self) -> None:
        """Zero the gradient buffers that DeepSpeed keeps: a parameter that the next step leaves out (the head of
        an absent task) would otherwise be updated with the gradient of an earlier step again.
        """
        if self._stage == 3:
            self._optimizer.grad_partitions_flat_buffer.zero_()
        if self._stage and "offload_optimizer" in self._config["zero_optimization"]:
            for flat in self._flats():
                if flat.grad is not None:
                    flat.grad.zero_()

    def call(self, tasks: Sequence[str], batches: Batches) -> tuple[Tensor, dict[str, Tensor]]:
        return _evaluate(self._engine, lambda: self._engine(tasks, batches, outputs=True))

    def export(self, optimizer: bool = True, keep: bool = True) -> Exported:
        # DeepSpeed gathers nothing of a parameter that requires no gradient, as outside the turn of its phase
        asleep = [p for p in self._named.values() if not p.requires_grad]
        for p in asleep:
            p.requires_grad_(True)
        try:
            return self._export(optimizer, keep)
        finally:
            for p in asleep:
                p.requires_grad_(False)

    def _export(self, optimizer: bool, keep: bool) -> Exported:
        from deepspeed.utils import safe_get_full_optimizer_state
        from deepspeed.utils.tensor_fragment import safe_get_full_fp32_param

        params: dict[str, Tensor] = dict(self._frozen)
        state: dict[str, Tensor] = {}
        for name, p in self._named.items():
            full = p if self._stage == 0 else safe_get_full_fp32_param(p)
            if keep:  # a rank that only helps to gather holds one tensor at a time
                params[name] = full.detach().float().cpu().reshape(self._shapes[name]).clone()
        values: dict[str, Any] = {}
        steps = [float(entry["step"]) for entry in self._inner().state.values() if "step" in entry]
        if steps:
            values["optimizer_step"] = steps[0]
        if optimizer and self._inner().state:
            for name, p in self._named.items():
                for s in self._names:
                    full = self._inner().state[p].get(s) if self._stage == 0 else safe_get_full_optimizer_state(p, s)
                    if full is not None and keep:
                        state[f"{s}/{name}"] = full.detach().float().cpu().reshape(self._shapes[name]).clone()
        if self._config.get("fp16", {}).get("enabled"):
            scaler = self._optimizer.loss_scaler
            values["loss_scaler"] = {k: v for k, v in vars(scaler).items() if isinstance(v, int | float | bool)}
        return params, state, values

    def restore(self, state: dict[str, Tensor], values: dict[str, Any]) -> None:
        if "loss_scaler" in values:
            vars(self._optimizer.loss_scaler).update(values["loss_scaler"])
        if not state:
            return
        inner = self._inner()
        for flat in self._named.values() if self._stage == 0 else self._flats():
            inner.state[flat] = {s: torch.zeros_like(flat) for s in self._names}
            if "optimizer_step" in values:
                inner.state[flat]["step"] = torch.tensor(values["optimizer_step"], dtype=torch.float32)
        if self._stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()
        for name, p in self._named.items():
            for s in self._names:
                self._put(p, state[f"{s}/{name}"], s)

    def restore_master(self, params: dict[str, Tensor]) -> None:
        for name, p in self._named.items():
            self._put(p, params[name], None)

    def _put(self, p: nn.Parameter, value: Tensor, key: str | None) -> None:
        value = value.to(torch.float32)
        if self._stage == 0:
            target = p.data if key is None else self._inner().state[p][key]
            target.copy_(value.reshape(target.shape))
        elif self._stage == 3:
            # the last rank's slice is padded, which DeepSpeed's own setter of full values does not expect
            part, _ = self._optimizer._get_fp32_opt_state_partition(p, release_swap_buffers=False, optim_state_key=key)
            start = part.numel() * dist.get_rank()
            mine = value.flatten()[start : start + part.numel()]
            part.data[: len(mine)].copy_(mine)
        elif p._hp_mapping is not None:  # type: ignore[attr-defined]
            p.set_full_hp_param(  # type: ignore[attr-defined]
                value.to(p.device), key
            )

    def _inner(self) -> torch.optim.Optimizer:
        return self._optimizer if self._stage == 0 else self._optimizer.optimizer

    def _flats(self) -> list[Tensor]:
        return self._optimizer.fp32_partitioned_groups_flat if self._stage == 3 else self._optimizer.single_partition_of_fp32_groups

    def pieces(self) -> dict[str, Tensor]:
        return {name: (p.ds_tensor if self._stage == 3 else p).detach() for name, p in self._named.items()}  # type: ignore[attr-defined]

    def join(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._stage < 3:
            return {name: piece.float().cpu().clone() for name, piece in pieces.items()}
        whole = {}
        for name, piece in pieces.items():
            parts = [torch.empty_like(piece) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, piece.contiguous())
            shape = self._shapes[name]
            whole[name] = torch.cat(parts)[: shape.numel()].view(shape).float().cpu()
        return whole

    def cut(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._stage < 3:
            return {name: value.to(self._named[name].device) for name, value in whole.items()}
        cut = {}
        for name, value in whole.items():
            piece = self._named[name].ds_tensor  # type: ignore[attr-defined]
            cut[name] = torch.zeros(piece.numel(), device=piece.device)
            mine = value.flatten()[piece.numel() * dist.get_rank() :][: piece.numel()]
            cut[name][: len(mine)] = mine.to(piece.device)
        return cut

    def close(self) -> None:
        self._engine.destroy()


def group_of_one(device: torch.device) -> None:
    """A process group of one, on a port nobody else has: DeepSpeed always wants a group."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even where nothing was launched
    store = dist.HashStore()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    deepspeed = _deepspeed(device)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False, dist_init_required=False)
