"""What is installed, and who may import whom."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from trainer.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("trainer", "components", "pipelines")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip() and not line.startswith("#"))
# torch's CUDA builds bring these, and pin them themselves
PLATFORM = re.compile(r"^(nvidia-|cuda-|triton$)")


def needed(extra: str) -> set[str]:
    """Canonical names of every package that `cotrain[extra]` needs, directly or not."""
    names: set[str] = set()
    todo = [(Requirement(text), "") for text in PROJECT["project"]["dependencies"]]
    todo += [(Requirement(text), "") for text in PROJECT["project"]["optional-dependencies"].get(extra, [])]
    seen = set()
    while todo:
        requirement, wanted_by = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by}):
            continue
        name = canonicalize_name(requirement.name)
        if PLATFORM.match(name):
            continue
        names.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in metadata.requires(name) or []]
    return names


def imported() -> set[str]:
    """Distributions that the product's code imports, wherever in a file it does so."""
    modules = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    modules.add(node.module.split(".")[0])
    modules -= {*PACKAGES, *sys.stdlib_module_names}
    homes = metadata.packages_distributions()
    return {canonicalize_name(homes[module][0]) for module in modules}


def declared() -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}


def test_what_the_code_imports_is_declared():
    # botocore and its like come with the package whose other half they are
    assert imported() - declared() - {"botocore", "pydantic-core"} == set()


def test_what_is_declared_is_imported():
    assert declared() - imported() == set()


def test_the_lock_pins_everything_that_is_needed_and_nothing_else():
    assert set(LOCK) == needed("dev") | {"pip", "setuptools", "wheel"}


def test_the_locked_versions_are_within_the_declared_ranges():
    for text in PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)]), text


def test_what_is_tested_is_what_is_locked():
    if Version(metadata.version("torch")).public != LOCK["torch"]:
        pytest.skip(f"this environment has torch {metadata.version('torch')}, not the lock's {LOCK['torch']}: it was made by other means")
    other = {name: metadata.version(name) for name in needed("dev") if Version(metadata.version(name)).public != LOCK[name]}
    assert other == {}, "run `make venv`"


def test_the_wheel_holds_every_package_and_the_templates(tmp_path):
    shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(".*", "runs", "data", "build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tmp_path / "tree")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("cotrain-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    packed = {file.relative_to(tmp_path / "wheel") for file in (tmp_path / "wheel").rglob("*") if file.is_file()}
    sources = {
        file.relative_to(ROOT)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sources - packed == set()
    assert {path.parts[0] for path in packed} - {*PACKAGES} == {f"cotrain-{PROJECT['project']['version']}.dist-info"}


VIOLATIONS = {
    "trainer imports a higher package": ("trainer/errors.py", "import pipelines", "packages"),
    "components import pipelines": ("components/__init__.py", "import pipelines", "packages"),
    "a part imports another part": ("trainer/mixers/all.py", "import trainer.mixers.proportional", "parts"),
    "a part imports a part of another folder": ("trainer/metrics/mae.py", "import trainer.objectives.mse", "trainer"),
    "a part imports a stage": ("trainer/models/mlp.py", "import trainer.results", "trainer"),
    "the document imports training": ("trainer/spec.py", "import trainer.engine", "trainer"),
    "a module that no layer names": ("trainer/elsewhere.py", "", "trainer"),
    "trainer imports kfp": ("trainer/report.py", "import kfp.dsl", "kfp"),
    "trainer imports kubernetes": ("trainer/run.py", "import kubernetes", "kfp"),
    "a component other than cluster imports kubernetes": ("components/elsewhere.py", "import kubernetes", "kubernetes"),
    "boto3 outside of the S3 store": ("trainer/stores/file.py", "import boto3", "boto3"),
    "botocore in a dataset": ("trainer/datasets/parquet.py", "import botocore", "boto3"),
    "deepspeed outside of the engine": ("trainer/step.py", "import deepspeed", "deepspeed"),
}


def broken_contracts(tree: Path) -> set[str]:
    """Names of the contracts that import-linter finds broken in a tree."""
    program = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "500"}
    run = subprocess.run([program, "--no-cache", "--no-logo"], cwd=tree, env=environment, capture_output=True, text=True)
    broken = set(re.findall(r"^(.+) BROKEN", run.stdout, flags=re.MULTILINE))
    assert run.returncode == bool(broken), run.stdout + run.stderr
    return broken


@pytest.fixture
def tree(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_every_contract(tree):
    assert broken_contracts(tree) == set()


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_contract_breaks_when_violated(violation, tree):
    path, line, contract = VIOLATIONS[violation]
    names = {entry["id"]: entry["name"] for entry in PROJECT["tool"]["importlinter"]["contracts"]}
    with (tree / path).open("a") as file:
        file.write(f"\n\ndef violation():\n    {line or 'pass'}\n")
    assert names[contract] in broken_contracts(tree)


def test_what_part_files_share_is_not_a_part():
    (contract,) = [entry for entry in PROJECT["tool"]["importlinter"]["contracts"] if entry["id"] == "parts"]
    shared = {rule.split(" -> ")[1] for rule in contract["ignore_imports"]}
    parts = {reference.partition(":")[0] for family in CATALOG.values() for reference in family.values()}
    assert shared & parts == set()


def test_every_family_of_parts_is_under_the_contract():
    (contract,) = [entry for entry in PROJECT["tool"]["importlinter"]["contracts"] if entry["id"] == "parts"]
    folders = {reference.partition(":")[0].rpartition(".")[0] for family in CATALOG.values() for reference in family.values()}
    assert {f"{folder}.*" for folder in folders} == set(contract["modules"])


def test_make_says_what_to_do_when_python_is_too_old(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2'\nexit 1\n")
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0
    assert "cotrain needs Python 3.11 or newer" in run.stderr
    assert "Python 3.9.2" in run.stderr
    assert "make PYTHON=/path/to/python3.11 run" in run.stderr
    assert not (tmp_path / ".venv").exists()
