"""What only a folder can do, or get wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trainer.errors import StoreError
from trainer.stores import open_store


def test_every_way_to_write_a_folder_opens_the_same_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = str(tmp_path / "my runs")
    paths = ["my runs", "./my runs", "x/../my runs", "~/my runs", place, place + "/"]
    uris = [f"file://{place}", f"file://localhost{place}", "file://./my%20runs", (tmp_path / "my runs").as_uri()]
    assert {open_store(uri).uri for uri in [*paths, *uris]} == {place}


@pytest.mark.parametrize("uri", ["", "file://", "a\0b"])
def test_a_uri_that_names_no_folder_is_refused(uri):
    with pytest.raises(StoreError, match="names no folder"):
        open_store(uri)


def test_a_file_is_not_a_store(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="in the way"):
        open_store(str(tmp_path / "file" / "below")).write("k", b"")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_key_below_a_key_is_refused_and_harms_neither(tmp_path):
    store = open_store(str(tmp_path))
    store.write("a", b"kept")
    with pytest.raises(StoreError, match="in the way"):
        store.write("a/b", b"")
    store.write("d/e", b"kept")
    with pytest.raises(StoreError, match="in the way"):
        store.write("d", b"")
    assert store.read("a") == store.read("d/e") == b"kept"
    assert [*store.list()] == ["a", "d/e"]


def test_what_may_not_be_written_says_where(tmp_path):
    if os.geteuid() == 0:
        root = "/proc/cotrain"  # the superuser may write everywhere but here
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        root = str(tmp_path / "locked" / "store")
    with pytest.raises(StoreError) as caught:
        open_store(root).write("k", b"")
    assert caught.value.faults[0].place == f"{root}/k"
    with pytest.raises(StoreError):
        open_store(root).probe()


FULL = """
import resource, signal, sys
from trainer.errors import StoreError
from trainer.stores import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    open_store(sys.argv[1]).write("k", b"new" * 1000)
except StoreError as error:
    print(error)
"""


def test_a_write_that_breaks_off_leaves_the_old_bytes_and_no_rubbish(tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.write("k", b"old")
    said = subprocess.run([sys.executable, "-c", FULL, store.uri], capture_output=True, text=True, check=True).stdout
    assert f"{store.uri}/k: File too large" in said and "fix:" in said
    assert store.read("k") == b"old"
    assert os.listdir(store.uri) == ["k"]


def test_an_upload_copies_no_bytes_where_the_file_system_has_links(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "f").write_bytes(b"x")
    store = open_store(str(tmp_path / "store"))
    store.upload(folder, "r")
    store.upload(folder, "r")
    assert os.stat(folder / "f").st_ino == os.stat(tmp_path / "store/r/f").st_ino
    assert os.listdir(tmp_path / "store/r") == ["f"]


def test_an_upload_from_another_file_system_copies(tmp_path):
    other = "/dev/shm"
    if not os.path.isdir(other) or os.stat(other).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system here")
    store = open_store(f"{other}/cotrain-{os.getpid()}")
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    try:
        store.upload(tmp_path, "r")
        assert store.read("r/f") == b"x" * 100_000
    finally:
        store.delete("r")
        os.rmdir(store.uri)


def test_a_download_is_the_stores_own_folder(tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.write("r/f", b"x")
    assert store.download("r", tmp_path / "elsewhere") == tmp_path / "store" / "r"
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_written_can_be_read_by_others(tmp_path):
    store = open_store(str(tmp_path))
    before = os.umask(0o022)
    try:
        store.write("k", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o644


def test_deleting_leaves_no_empty_folders_but_the_store(tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.write("a/b/c", b"")
    store.delete("a/b/c")
    assert os.listdir(store.uri) == []


def test_a_probe_of_a_folder_that_is_not_there_does_not_make_it(tmp_path):
    assert "GB free" in open_store(str(tmp_path / "new")).probe()
    assert os.listdir(tmp_path) == []
