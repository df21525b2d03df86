"""A folder as a store: a path or `file://`."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from trainer.errors import StoreError
from trainer.parts import Store
from trainer.stores.keys import RESERVED, below, checked, files_below, seals_first

_REMEDIES = {
    errno.ENOSPC: "free some space there, or use another store",
    errno.EDQUOT: "free some space there, or use another store",
    errno.EROFS: "use a store that can be written",
    errno.ENOTDIR: "a file is in the way: move it, or use another folder",
    errno.EISDIR: "a folder is in the way: move it, or use another folder",
    errno.EEXIST: "a file is in the way: move it, or use another folder",
    errno.ENAMETOOLONG: "use a shorter path",
}


class FileStore(Store):
    """Files below a folder. Every write is a temporary file, flushed to disk and renamed: readers see old or new bytes.

    `swap` is guarded by a lock file beside the key, so it is atomic among processes (on network file systems too, where
    they have `flock`); a key that is swapped should not be written in another way.
    """

    def __init__(self, uri: str) -> None:
        path = uri
        if uri.startswith("file://"):
            path = unquote(uri.removeprefix("file://"))
            path = path.removeprefix("localhost") if path.startswith("localhost/") else path
        if not path or "\0" in path:
            raise StoreError.at("store", f"'{uri}' names no folder", "give a path, such as './runs', or 'file:///data/runs'")
        self.folder = Path(os.path.abspath(os.path.expanduser(path)))
        self.uri = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError.at(self.uri, "is a file, not a folder", "give the path of a folder")

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with self._told(key):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                absent = error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from absent

    def write(self, key: str, data: bytes) -> None:
        def fill(part: Path) -> None:
            part.write_bytes(data)

        with self._told(key):
            self._commit(self._path(key), fill)

    def swap(self, key: str, data: bytes, expect: str | None) -> bool:
        path = self._path(key)
        with self._told(key):
            _make(path.parent)
            with FileLock(path.with_name(f"{RESERVED}lock-{path.name}"), mode=0o666):
                if self.version(key) != expect:
                    return False
                self.write(key, data)
                return True

    def version(self, key: str) -> str | None:
        try:
            return hashlib.sha256(self.read(key)).hexdigest()
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[str]:
        top = self._path(prefix) if prefix else self.folder
        keys = []
        with self._told(prefix):
            for folder, names, files in os.walk(top, onerror=_unless_gone):
                names[:] = [name for name in names if not name.startswith(RESERVED)]
                keys += [(Path(folder) / name).relative_to(self.folder).as_posix() for name in files if not name.startswith(RESERVED)]
        yield from sorted(keys)

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        with self._told(prefix):
            if path.is_dir() and not path.is_symlink():
                for key in seals_first([*self.list(prefix)]):
                    self._path(key).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=False)
            else:
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
            with suppress(OSError):  # empty folders are not there, as in other stores; the first that is not empty ends it
                for folder in path.parents:
                    if folder == self.folder:
                        break
                    folder.rmdir()

    def upload(self, folder: Any, prefix: str) -> None:
        """As `Store.upload`. Files are hard-linked where the file system can, so `folder` must not be changed in place later."""
        if prefix:
            checked(self.uri, prefix)
        source = Path(folder)
        with self._told(prefix):
            for name in files_below(self.uri, source):
                self._commit(self._path(below(prefix) + name), partial(_link_or_copy, (source / name).resolve()))

    def download(self, prefix: str, folder: Any, wanted: Callable[[str], bool] | None = None) -> Path:
        """The store's own folder: nothing is copied, `folder` is left alone."""
        path = self._path(prefix) if prefix else self.folder
        if not path.is_dir():
            raise StoreError.at(str(path), "there is no such folder", "check the URI")
        return path

    def probe(self) -> str:
        """Write, read and delete a small key; what was found, in a line. Raises StoreError where that fails."""
        there = self.folder.is_dir()
        key, data = f"probe-{uuid.uuid4().hex}", b"cotrain"
        try:
            won = self.swap(key, data, None)
            if not won or self.read(key) != data or self.swap(key, data, None):
                raise StoreError.at(self.uri, "what was written does not read back", "use another folder")
            free = shutil.disk_usage(self.folder).free
        finally:
            if self.folder.is_dir():
                (self.folder / f"{RESERVED}lock-{key}").unlink(missing_ok=True)
                self.delete(key)
                if not there:
                    with suppress(OSError):
                        self.folder.rmdir()
        return f"folder {self.uri}: writes, reads, swaps and deletes; {free / 1e9:.1f} GB free"

    def _path(self, key: str) -> Path:
        return self.folder / checked(self.uri, key)

    def _commit(self, path: Path, fill: Callable[[Path], None]) -> None:
        _make(path.parent)
        part = path.with_name(f"{RESERVED}part-{uuid.uuid4().hex}")
        try:
            fill(part)
            _flush(part)
            os.replace(part, path)
            _flush(path.parent)
        finally:
            part.unlink(missing_ok=True)  # also after a rename onto a hard link of itself, which leaves both names

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        place = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, f"check that you may read and write {self.uri}, or use another folder")
            raise StoreError.at(place, f"{error.strerror or error}", remedy) from error


def _link_or_copy(source: Path, part: Path) -> None:
    try:
        os.link(source, part)
    except OSError:  # another file system, one without links, or another user's file: then a copy
        shutil.copyfile(source, part)


def _make(folder: Path) -> None:
    """Folders on disk, not only in memory: a file must not outlive a crash that its folder does not."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
