"""Joint checkpoints: everything training goes on from, as one folder that exists once its manifest does.

Tensors are safetensors, the rest is JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import StoreError
from trainer.observe import emit
from trainer.parts import Store
from trainer.results import MANIFEST, local_copy, verify, write_manifest


@dataclass
class Saved:
    """The state of a run between two steps."""

    phase: int = 0
    step: int = 0
    params: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and buffers by name, float32, whole."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    """Parameters of the best validation so far; empty without early stopping."""
    balancer: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """Plain values: the engine's counters, early stopping, seconds spent."""
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run, below a prefix of a store. Only the first rank writes."""

    def __init__(self, store: Store, prefix: str, keep: int) -> None:
        self._store, self._prefix, self._keep = store, prefix, keep

    def save(self, saved: Saved) -> str:
        """Write a checkpoint and sweep all but the last `keep`. Returns its key."""
        name = f"{saved.phase:03d}-{saved.step:09d}"
        folder = Path(tempfile.mkdtemp(prefix="cotrain-checkpoint-"))
        try:
            balancer, plain = _split(saved.balancer)
            for file, tensors in (("model", saved.params), ("optimizer", saved.optimizer), ("best", saved.best), ("balancer", balancer)):
                save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{file}.safetensors")
            state = {"phase": saved.phase, "step": saved.step, "balancer": plain, "values": saved.values}
            (folder / "state.json").write_text(json.dumps(state))
            (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in saved.history))
            write_manifest(folder, "checkpoint", name)
            self._store.upload(folder, f"{self._prefix}/{name}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._sweep(name)
        return f"{self._prefix}/{name}"

    def latest(self) -> str | None:
        """The name of the newest checkpoint that is whole: one that is torn is passed over."""
        for name in reversed(self._names()):
            if not self._store.exists(f"{self._prefix}/{name}/{MANIFEST}"):
                continue
            try:
                verify(self._folder(name))
                return name
            except (StoreError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._store.read(f"{self._prefix}/{name}/{MANIFEST}")  # a store out of reach is no reason to start anew: this raises
                emit("checkpoint_passed_over", key=f"{self._prefix}/{name}", reason=str(error).splitlines()[0])
        return None

    def read(self, name: str, again: bool = True) -> Saved:
        """The state that a whole checkpoint holds; not downloaded `again` where another process of this machine has just done so."""
        return _read(self._folder(name, again))

    def _folder(self, name: str, again: bool = True) -> Path:
        return local_copy(self._store, f"{self._prefix}/{name}", again=again)

    def clear(self) -> None:
        """Remove all checkpoints of the run."""
        self._store.delete(self._prefix)

    def _names(self) -> list[str]:
        found = {key[len(self._prefix) :].strip("/").split("/")[0] for key in self._store.list(self._prefix)}
        return sorted(found)

    def _sweep(self, newest: str) -> None:
        # what is newer than the one just written was torn and passed over: it must not count among those kept
        names = self._names()
        whole = [name for name in names if name <= newest and self._store.exists(f"{self._prefix}/{name}/{MANIFEST}")]
        for name in set(names) - set(whole[-self._keep :]):
            self._store.delete(f"{self._prefix}/{name}")


def _read(folder: Path) -> Saved:
    """Tensors are views of the files, which all ranks of a machine map: memory holds what is read of them, and once."""
    state = json.loads((folder / "state.json").read_text())
    return Saved(
        phase=state["phase"],
        step=state["step"],
        params=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        best=load_file(folder / "best.safetensors"),
        balancer=state["balancer"] | load_file(folder / "balancer.safetensors"),
        values=state["values"],
        history=[json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()],
    )


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
