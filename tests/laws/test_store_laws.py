"""What every store promises, asserted on a folder and on an S3 server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.catalog import CATALOG
from trainer.errors import StoreError
from trainer.results import verify, write_manifest
from trainer.stores import open_store


@pytest.fixture(params=sorted(CATALOG["store"]))
def store(request, tmp_path):
    if request.param == "file":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_bucket")() + "/some/prefix")


@pytest.fixture
def sealed(tmp_path):
    """A result folder: files of several sizes, one in a subfolder, a manifest."""
    folder = tmp_path / "sealed"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "deep" / "er" / "small.json").write_bytes(b"{}")
    (folder / "large.bin").write_bytes(bytes(range(256)) * 12_000)
    write_manifest(folder, "test", "key")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_written_reads_back(store):
    store.write("a/b", b"one")
    assert store.read("a/b") == b"one" and store.exists("a/b")
    store.write("a/b", b"")
    assert store.read("a/b") == b""


@pytest.mark.parametrize("key", ["absent", "deeply/absent", "there/below", "the"])
def test_an_absent_key_is_absent_in_every_way(store, key):
    store.write("there", b"x")
    store.write("the/re", b"x")
    assert not store.exists(key) and store.version(key) is None
    with pytest.raises(FileNotFoundError):
        store.read(key)
    store.delete("absent")


def test_the_version_changes_with_the_bytes_and_only_with_them(store):
    store.write("k", b"one")
    first = store.version("k")
    store.write("k", b"one")
    assert store.version("k") == first
    store.write("k", b"two")
    assert store.version("k") not in {first, None}


def test_keys_are_listed_in_order_below_a_prefix_that_is_a_folder(store):
    for key in ["b/2", "a/x", "b/1", "b", "b-c/1", "b.d", "b/1.d/z"]:
        if key != "b":
            store.write(key, b"")
    assert [*store.list()] == ["a/x", "b-c/1", "b.d", "b/1", "b/1.d/z", "b/2"]
    assert [*store.list("b")] == ["b/1", "b/1.d/z", "b/2"]
    assert [*store.list("nothing")] == []
    assert [*store.list("a/x")] == []


def test_more_keys_than_a_page_are_all_listed_and_deleted(store, monkeypatch):
    if "s3:" in store.uri:  # a page of a thousand would take long to fill
        client = type(store)._client.fget(store)
        client.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 7})
    keys = [f"many/{i:03d}" for i in range(25)]
    for key in keys:
        store.write(key, b"")
    assert [*store.list("many")] == keys
    store.delete("many")
    assert [*store.list()] == []


def test_a_store_is_a_view_of_the_keys_below_its_uri(store):
    inner = open_store(f"{store.uri}/in/ner/")
    inner.write("k", b"v")
    assert store.read("in/ner/k") == b"v" and [*inner.list()] == ["k"]
    inner.delete("k")
    assert not store.exists("in/ner/k")


def test_deleting_takes_a_key_or_a_folder_and_no_neighbour(store):
    for key in ["a/1", "a/2/3", "ab/1", "a.txt"]:
        store.write(key, b"x")
    store.delete("a/1")
    assert [*store.list()] == ["a.txt", "a/2/3", "ab/1"]
    store.delete("a")
    assert [*store.list()] == ["a.txt", "ab/1"]


BAD_KEYS = ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "./a", "a\\b", "a\nb", "a/.cotrain~part-1", "x" * 300, "d/" * 500 + "x"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_leads_elsewhere_is_refused_by_every_method(store, tmp_path, key):
    for attempt in (
        lambda: store.write(key, b"evil"),
        lambda: store.read(key),
        lambda: store.exists(key),
        lambda: store.version(key),
        lambda: store.swap(key, b"evil", None),
        lambda: store.delete(key),
    ):
        with pytest.raises(StoreError, match="key"):
            attempt()
    if key:
        for attempt in (lambda: [*store.list(key)], lambda: store.upload(tmp_path, key), lambda: store.download(key, tmp_path / "got")):
            with pytest.raises(StoreError, match="key"):
                attempt()


def test_a_swap_needs_the_version_that_is_there(store):
    assert not store.swap("p/q", b"zero", "no such version")
    assert not store.exists("p/q")
    assert store.swap("p/q", b"one", None)
    assert not store.swap("p/q", b"two", None)
    first = store.version("p/q")
    assert store.swap("p/q", b"two", first)
    assert not store.swap("p/q", b"three", first)
    assert store.read("p/q") == b"two"
    assert [*store.list()] == ["p/q"]


@pytest.mark.parametrize("there", [False, True])
def test_one_of_many_threads_wins_a_swap(store, there):
    if there:
        store.write("pointer", b"old")
    before = store.version("pointer")
    rivals = [open_store(store.uri) for _ in range(8)]
    with ThreadPoolExecutor(len(rivals)) as pool:
        won = [*pool.map(lambda i: rivals[i].swap("pointer", b"rival %d" % i, before), range(len(rivals)))]
    assert won.count(True) == 1
    assert store.read("pointer") == b"rival %d" % won.index(True)


COUNT = """
import sys
from trainer.stores import open_store
store = open_store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    while True:
        tag = store.version("count")
        count = int(store.read("count"))
        if store.swap("count", str(count + 1).encode(), tag):
            break
"""


def test_processes_that_count_by_swapping_lose_no_count(store):
    store.write("count", b"0")
    counters = [subprocess.Popen([sys.executable, "-c", COUNT, store.uri, "8"]) for _ in range(3)]
    assert [counter.wait(120) for counter in counters] == [0, 0, 0]
    assert store.read("count") == b"24"


def test_a_folder_goes_up_and_comes_down_whole(store, sealed, tmp_path):
    expected = contents(sealed)
    store.upload(sealed, "results/one")
    assert [*store.list("results/one")] == sorted(f"results/one/{name}" for name in expected)
    got = store.download("results/one", tmp_path / "got")
    verify(got)
    assert contents(got) == expected
    store.upload(sealed, "results/one")  # the same again does no harm
    assert contents(store.download("results/one", tmp_path / "got")) == expected
    assert [*store.list("results/one")] == sorted(f"results/one/{name}" for name in expected)


def test_a_store_opened_at_a_result_downloads_it_with_an_empty_prefix(store, sealed, tmp_path):
    store.upload(sealed, "results/one")
    assert contents(open_store(f"{store.uri}/results/one").download("", tmp_path / "got")) == contents(sealed)


def test_the_manifest_is_written_last(store, sealed):
    """Who sees the manifest while the folder is still going up finds every file that it lists."""
    for i in range(40):
        (sealed / f"zz-{i:02d}").write_bytes(b"x" * i)
    write_manifest(sealed, "test", "key")
    names = sorted(json.loads((sealed / "manifest.json").read_text())["files"])

    def look() -> list[str]:
        while not store.exists("r/manifest.json"):
            pass
        return [*store.list("r")]

    with ThreadPoolExecutor(2) as pool:
        seen = pool.submit(look)
        store.upload(sealed, "r")
        assert seen.result(60) == sorted(f"r/{name}" for name in [*names, "manifest.json"])


def test_what_is_not_there_can_be_neither_uploaded_nor_downloaded(store, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        store.upload(tmp_path / "absent", "a")
    store.write("a/b", b"")
    with pytest.raises(StoreError) as caught:
        store.download("absent", tmp_path / "got")
    assert caught.value.faults[0].place == f"{store.uri}/absent"
    assert not (tmp_path / "got").exists()


UPLOAD = """
import sys
from trainer.stores import open_store
open_store(sys.argv[1]).upload(sys.argv[2], "results/one")
"""


def test_an_upload_that_is_killed_leaves_no_manifest_and_no_half_file(store, tmp_path):
    """Killed after the first file of forty is seen: what is there is whole, and nothing says that all is there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    digests = {}
    for i in range(40):
        data = bytes([i]) * 400_000
        (folder / f"{i:02d}.bin").write_bytes(data)
        digests[f"results/one/{i:02d}.bin"] = hashlib.sha256(data).hexdigest()
    write_manifest(folder, "test", "key")
    uploader = subprocess.Popen([sys.executable, "-c", UPLOAD, store.uri, str(folder)])
    while len([*store.list("results/one")]) < 1 and uploader.poll() is None:
        pass
    uploader.kill()
    uploader.wait()
    there = [*store.list("results/one")]
    if "results/one/manifest.json" in there:
        assert len(there) == 41
    for key in there:
        if not key.endswith("manifest.json"):
            assert hashlib.sha256(store.read(key)).hexdigest() == digests[key]
    store.upload(folder, "results/one")  # and it can be done again
    verify(store.download("results/one", tmp_path / "got"))


def test_the_probe_finds_a_good_store_good_and_leaves_nothing(store):
    assert "writes, reads" in store.probe()
    assert [*store.list()] == []
