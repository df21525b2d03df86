"""Results: folders found by key, that exist once their manifest is written. Same key, no work.

The layout is drawn in docs/architecture.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainer.errors import StoreError
from trainer.parts import Store
from trainer.spec import digest
from trainer.stores import open_store

MANIFEST = "manifest.json"
_HERE = Path(__file__).parent
_SHARED_CODE = ("parts.py", "spec.py", "results.py", "columns", "shards.py")
_CODE = {
    "data": (*_SHARED_CODE, "prepare.py", "rowhash.py", "duplicates.py", "datasets"),
    "train": (*_SHARED_CODE, "nets.py", "fusion.py", "boxes.py", "adversarial.py", "noise.py", "mixing.py",
              "models", "objectives", "syncs", "optimizers", "balancers", "mixers",
              "order.py", "feed.py", "points.py", "balance.py", "joint.py", "view.py", "engine.py",
              "step.py", "run.py", "plan.py", "checkpoint.py"),
    "score": (*_SHARED_CODE, "nets.py", "fusion.py", "boxes.py", "adversarial.py", "noise.py", "manifold.py", "pictures.py",
              "models", "objectives", "metrics", "joint.py", "view.py", "bootstrap.py", "evaluate.py", "predict.py"),
    "compare": ("results.py", "parts.py", "boxes.py", "manifold.py", "metrics", "bootstrap.py", "evaluate.py", "gates.py", "compare.py"),
    "report": ("results.py", "report.py", "report_tasks.py", "report_pulls.py", "report_work.py", "report_data.py",
               "grouping.py", "charts.py", "wording.py", "templates"),
}  # fmt: skip


@cache
def code_version(stage: str) -> str:
    """Digest of the sources a stage's result depends on."""
    sha = hashlib.sha256()
    for name in _CODE[stage]:
        path = _HERE / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                sha.update(str(file.relative_to(_HERE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def key_of(stage: str, *depends: Any) -> str:
    """The key of a result: a digest of what it depends on and of the code that makes it."""
    return digest(stage, code_version(stage), *depends)[:24]


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, stage: str, key: str, **extra: Any) -> dict[str, Any]:
    """Seal a folder: list every file in it with size and SHA-256, as its last file."""
    files = {
        str(file.relative_to(folder)): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"stage": stage, "key": key, "files": files, **extra}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a local result folder."""
    return json.loads((folder / MANIFEST).read_text())


def verify(folder: Path) -> None:
    """Raise StoreError unless every file of the manifest is there with its SHA-256."""
    for name, entry in read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != entry["sha256"]:
            state = "differs from its SHA-256" if file.is_file() else "is missing"
            raise StoreError.at(str(file), f"{state} in the manifest", f"remove {folder} and run again")


@dataclass(frozen=True)
class Result:
    """A finished result: its key, its local folder, and whether it was there already."""

    key: str
    folder: Path
    reused: bool

    def json(self, name: str) -> Any:
        """A JSON file of the result."""
        return json.loads((self.folder / name).read_text())


def local_cache(store: Store, prefix: str) -> Path:
    """Where a remote prefix is kept on this machine."""
    return Path.home() / ".cache" / "cotrain" / hashlib.sha256(f"{store.uri}/{prefix}".encode()).hexdigest()[:24]


def fetch(root: str, stage: str, key: str, wanted: Callable[[str], bool] | None = None, again: bool = True) -> Result | None:
    """The result if it exists below `root`, as a local folder; else None.

    Args:
        root: where results are kept.
        stage: of the result.
        key: of the result.
        wanted: which of its files, by name; all by default.
        again: whether to see to it that every file is there and right. Not where another process of this machine has just done so.
    """
    store = open_store(root)
    prefix = f"results/{stage}/{key}"
    if not store.exists(f"{prefix}/{MANIFEST}"):
        return None
    return Result(key, local_copy(store, prefix, wanted, again), reused=True)


def local_copy(store: Store, prefix: str, wanted: Callable[[str], bool] | None = None, again: bool = True) -> Path:
    """The files below a prefix as a local folder; see `fetch`."""
    folder = local_cache(store, prefix)
    return folder if not again and (folder / MANIFEST).is_file() else Path(store.download(prefix, folder, wanted))


def keyed(root: str, stage: str, key: str, make: Callable[[Path], dict[str, Any] | None]) -> Result:
    """The result of `stage` with this key: found, or made now by `make(folder)` and committed whole.

    `make` fills an empty folder and may return what to add to the manifest. If it raises, nothing
    is left behind. On one machine two callers with one key take turns, and the second finds the
    work done.
    """
    store = open_store(root)
    prefix = f"results/{stage}/{key}"
    locks = Path(tempfile.gettempdir()) / "cotrain-locks"
    locks.mkdir(mode=0o777, exist_ok=True)
    with FileLock(locks / f"{digest(store.uri, prefix)[:24]}.lock"):
        found = fetch(root, stage, key)
        if found:
            return found
        scratch = Path(tempfile.mkdtemp(prefix=f"cotrain-{stage}-"))
        try:
            extra = make(scratch) or {}
            write_manifest(scratch, stage, key, **extra)
            store.upload(scratch, prefix)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Result(key, Path(store.download(prefix, local_cache(store, prefix))), reused=False)
