"""Code of the user's own in keys: what it is made of counts, wherever it lies, and nothing is imported to see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_inputs import document

from trainer.datasets.python import PythonDataset
from trainer.outcomes import run_key
from trainer.requests import joint_requests
from trainer.sources import source_digest

FILES = {
    "mine/__init__.py": "raise RuntimeError('imported')\n",
    "mine/nets.py": "import torch\nfrom . import blocks\ndef net(inputs): ...\n",
    "mine/blocks.py": "def build():\n    from beside.deep import depth\n    return depth\n",
    "mine/unused.py": "x = 1\n",
    "beside/__init__.py": "",
    "beside/deep.py": "from mine.nets import net\ndepth = 2\n",
}
REFERENCE = "mine.nets:net"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package of the user's own and one beside it."""
    folder = tmp_path / "checkout"
    write(folder, FILES)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("changed", ["mine/__init__.py", "mine/nets.py", "mine/blocks.py", "beside/__init__.py", "beside/deep.py"])
def test_every_module_that_it_may_run_counts(changed: str, here: Path) -> None:
    before = source_digest(REFERENCE)
    (here / changed).write_text((here / changed).read_text() + "# another\n")
    assert source_digest(REFERENCE) != before
    assert not {"mine", "mine.nets", "beside"} & set(sys.modules)


def test_what_it_does_not_import_and_where_it_lies_do_not_count(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest(REFERENCE)
    (here / "mine" / "unused.py").write_text("x = 2\n")
    assert source_digest(REFERENCE) == before
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, FILES)
    monkeypatch.chdir(elsewhere)
    assert source_digest(REFERENCE) == before


def test_of_an_installed_package_that_package_alone_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "lib" / "site-packages"
    write(site, FILES)
    monkeypatch.syspath_prepend(str(site))
    before = source_digest(REFERENCE)
    (site / "beside" / "deep.py").write_text("depth = 3\n")
    assert source_digest(REFERENCE) == before
    (site / "mine" / "blocks.py").write_text("depth = 3\n")
    assert source_digest(REFERENCE) != before


def test_code_of_ones_own_decides_what_is_trained_again(here: Path) -> None:
    spec, plain = document(models={"trunk": {"kind": REFERENCE}}), document()
    data = {name: {"key": "k", "digest": "d", "rows": {"train": 10}} for name in spec.data}

    def keys() -> list[str]:
        return [key for one in (spec, plain) for key in (joint_requests(one, data)[0]["key"], run_key(one, dict.fromkeys(one.data, "d")))]

    before = keys()
    assert keys() == before
    (here / "beside" / "deep.py").write_text("depth = 3\n")
    trained, run, *untouched = keys()
    assert trained != before[0]
    assert run != before[1]
    assert untouched == before[2:]


def test_rows_of_a_function_are_prepared_again_when_what_it_imports_changes(here: Path) -> None:
    write(here, {"rows.py": "from cells import cell\ndef rows():\n    yield {'x': cell}\n", "cells.py": "cell = 1\n"})
    dataset = PythonDataset(kind="rows:rows", columns={"x": {"kind": "number"}})
    before = dataset.fingerprint()
    (here / "cells.py").write_text("cell = 2\n")
    assert dataset.fingerprint() != before
