"""What the dataset kinds that read files share: which files there are, what is in them, and a digest of it all."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from trainer.errors import DataError, Fault, one_of
from trainer.parts import Dataset, Store
from trainer.stores import open_store

BATCH_BYTES = 4 << 20
BATCH_ROWS = 8192


def data_folder() -> Path:
    """Where `cotrain data NAME` puts what it fetches: `$COTRAIN_DATA`, or `data` below the current folder."""
    return Path(os.environ.get("COTRAIN_DATA") or "data")


def fetched(name: str) -> Path:
    """What `cotrain data NAME` fetched. Raises DataError where that has not been run."""
    if missing := unfetched(name, name):
        raise DataError(missing)
    return data_folder() / f"{name}.parquet"


def unfetched(place: str, name: str) -> list[Fault]:
    """The fault of a data set that has not been fetched; none where it has."""
    path = data_folder() / f"{name}.parquet"
    return [] if path.is_file() else [Fault(place, f"there is no file {path}", f"run: cotrain data {name}")]


@dataclass(frozen=True)
class Source:
    """One file: its name for messages, and where its bytes are."""

    name: str
    path: Path | None = None
    store: Store | None = None
    key: str = ""

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The file on this machine; what had to be fetched is removed afterwards, so that one such copy exists at a time."""
        if self.path is not None:
            yield self.path
            return
        assert self.store is not None
        with tempfile.TemporaryDirectory(prefix="cotrain-source-") as folder:
            copy = Path(folder) / self.key.rpartition("/")[2]
            self.store.fetch(self.key, copy)
            yield copy

    def version(self) -> str:
        """A digest of a local file's bytes; the tag that the store gives it otherwise."""
        if self.path is not None:
            return digest_of(self.path)
        assert self.store is not None
        return self.store.version(self.key) or "gone"


def sources(uri: str, suffixes: Sequence[str]) -> list[Source]:
    """The file at a URI, or the files with one of these suffixes below it, sorted by name.

    Names that start with '.' or '_' are passed over, as other readers of such folders do.

    Raises:
        DataError: if there is none.
    """
    if "://" not in uri or uri.startswith("file://"):
        path = local_path(uri)
        if path.is_file():
            return [Source(str(path), path)]
        if not path.is_dir():
            raise DataError.at(uri, "there is no such file or folder", "correct the path, which is relative to the current folder")
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        found = [Source(str(path / name), path / name) for name in names if _wanted(name, suffixes)]
    else:
        parent, _, name = uri.rstrip("/").rpartition("/")
        if parent.endswith("/") or not name:  # a bucket alone
            parent, name = uri, ""
        store = open_store(parent)
        if name and not uri.endswith("/") and store.version(name) is not None:
            return [Source(uri, store=store, key=name)]
        keys = [key for key in store.list(name) if _wanted(key[len(name) :].lstrip("/"), suffixes)]
        found = [Source(f"{parent.rstrip('/')}/{key}", store=store, key=key) for key in keys]
    if not found:
        raise DataError.at(uri, f"holds no file that ends in {', '.join(suffixes)}", "correct the path, or rename the files")
    return found


def fingerprint(uri: str, suffixes: Sequence[str]) -> str:
    """A digest of the names and contents behind a URI."""
    sha = hashlib.sha256()
    for source in sources(uri, suffixes):
        sha.update(f"{source.name}\0{source.version()}\0".encode())
    return sha.hexdigest()


def faults(place: str, dataset: Dataset, uri: str, suffixes: Sequence[str], names: Callable[[Path], list[str] | None]) -> list[Fault]:
    """What is wrong with a document's dataset of files, as far as the first of them shows. Only local ones are looked at.

    Args:
        names: the columns of a file; None when they can't be known, or not all of them.
    """
    if "://" in uri and not uri.startswith("file://"):
        return []
    try:
        first = sources(uri, suffixes)[0]
        known = names(local_path(first.name))
    except DataError as error:
        return [Fault(f"{place}.uri", f"{fault.place}: {fault.finding}", fault.remedy) for fault in error.faults]
    return unknown_columns(place, dataset, known) if known is not None else []


def unknown_columns(place: str, dataset: Dataset, known: Sequence[str]) -> list[Fault]:
    """Columns and keys of a document that the source does not have."""
    found = []
    for name, column in dataset.columns.items():
        if (column.source or name) not in known:
            where = f"{place}.columns.{name}" + (".source" if column.source else "")
            found.append(Fault(where, f"the source has no column '{column.source or name}'", one_of(column.source or name, known)))
    keys = [dataset.key] if isinstance(dataset.key, str) else dataset.key or []
    found += [Fault(f"{place}.key", f"the source has no column '{key}'", one_of(key, known)) for key in keys if key not in known]
    return found


def require(place: str, columns: Sequence[str], known: Sequence[str]) -> None:
    """Raise DataError unless a file has every column."""
    absent = [Fault(place, f"has no column '{name}'", one_of(name, known)) for name in columns if name not in known]
    if absent:
        raise DataError(absent)


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    return Path(unquote(uri.removeprefix("file://")) if uri.startswith("file://") else os.path.expanduser(uri))


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Kept on this machine for the same unchanged file, by inode and ctime too: no rewrite leaves those alone."""
    state = path.stat()
    identity = f"{path.resolve()}\0{state.st_dev}\0{state.st_ino}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}"
    kept = Path.home() / ".cache" / "cotrain" / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    with suppress(OSError):
        if len(found := kept.read_text()) == 64:
            return found
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # clocks of file systems tick slowly: a file changed just now may change again without showing it
    if time.time() - max(state.st_mtime, state.st_ctime) > 2:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            part.write_text(digest)
            part.replace(kept)
    return digest


def _wanted(name: str, suffixes: Sequence[str]) -> bool:
    return name.endswith(tuple(suffixes)) and not any(part.startswith((".", "_")) for part in name.split("/"))
