"""A document becomes a spec with every default written out."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainer import references
from trainer.check import load_spec
from trainer.document import Unreadable, parse_yaml
from trainer.errors import SpecError

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
name: job
data:
  digits:
    kind: digits
    columns: {image: {kind: image, shape: [1, 8, 8]}, digit: category, ink: number}
models:
  trunk: mlp
tasks:
  ink: {data: digits, model: trunk, input: image, target: ink}
  digit: {data: digits, model: trunk, input: [image], target: digit, metrics: [auroc]}
phases:
  joint: {epochs: 2}
  last: {tasks: [digit], steps: 5}
train: {optimizer: {kind: adamw, lr: 3e-4}}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(TEXT)
    return file


def test_defaults_are_written_out(path):
    spec = load_spec(path)
    assert spec.phases["joint"].tasks == ["ink", "digit"]
    assert spec.phases["last"].tasks == ["digit"]
    assert [(task.objective.kind, [m.kind for m in task.metrics]) for task in spec.tasks.values()] == [
        ("mse", ["r2", "mae"]),
        ("cross_entropy", ["auroc"]),
    ]
    assert spec.train.validate_every is None
    assert spec.train.optimizer.lr == 3e-4
    assert spec.phases["joint"].balancer.kind == "equal"


def test_a_resolved_document_resolves_to_itself(path):
    spec = load_spec(path)
    written = json.loads(json.dumps(spec.to_json()))
    assert load_spec(written) == spec
    assert load_spec(written).to_json() == spec.to_json()
    assert load_spec(json.dumps(written)) == spec


def test_the_order_of_the_document_is_kept(path):
    spec = load_spec(path)
    assert list(spec.tasks) == ["ink", "digit"]
    assert list(spec.data["digits"].columns) == ["image", "digit", "ink"]
    assert list(spec.to_json()["phases"]) == ["joint", "last"]


def test_a_path_a_uri_a_json_text_and_a_dict_give_the_same_spec(path, tmp_path):
    document = yaml.safe_load(TEXT.replace("3e-4", "0.0003"))
    as_json = tmp_path / "job.json"
    as_json.write_text(json.dumps(document))
    sources = [path, str(path), f"file://{path}", as_json, json.dumps(document), document]
    assert all(load_spec(source) == load_spec(path) for source in sources)


def test_reading_a_dict_leaves_it_as_it_is():
    document = yaml.safe_load(TEXT.replace("3e-4", "0.0003"))
    before = copy.deepcopy(document)
    load_spec(document, ["train.batch=8", "tasks.digit.metrics.0=accuracy"])
    assert document == before


def test_overrides_reach_fields_items_shorthands_and_parts(path):
    spec = load_spec(
        path,
        [
            "train.batch=128",
            "phases.last.tasks=[ink, digit]",
            "tasks.digit.metrics.0=accuracy",
            "tasks.digit.metrics[1]=log_loss",
            "models.trunk.hidden=[7]",
            "train.zero=2",
            "train.zero.overlap_comm=true",
            "phases.last.balancer={kind: static, weights: {ink: 1, digit: 2}}",
            "phases.last.balancer.weights.ink=3",
            "train.optimizer.lr=1e-2",
            "train.batch=256",
        ],
    )
    assert spec.train.batch == 256
    assert spec.phases["last"].tasks == ["ink", "digit"]
    assert [metric.kind for metric in spec.tasks["digit"].metrics] == ["accuracy", "log_loss"]
    assert spec.models["trunk"].hidden == [7]
    assert (spec.train.zero.stage, spec.train.zero.overlap_comm) == (2, True)
    assert spec.phases["last"].balancer.weights == {"ink": 3, "digit": 2}
    assert spec.train.optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1E5", 1e5), (".5", 0.5), ("-1.", -1.0), ("7", 7), ("007", 7), ("0x1F", 31), ("0o17", 15), ("-3", -3),
        ("no", "no"), ("on", "on"), ("true", True), ("~", None), ("", None), ("1_000", "1_000"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01"),
        ("'3'", "3"), ("=", "="), ("1.2.3", "1.2.3"), ("!!str 3", "3"), ("!!float 3", 3.0),
    ],
)  # fmt: skip
def test_yaml_is_read_as_its_version_1_2(text, value):
    read, findings = parse_yaml(f"a: {text}")
    assert (read, findings) == ({"a": value}, [])
    assert type(read["a"]) is type(value)


def test_aliases_are_read_and_copied():
    (value, findings) = parse_yaml("a: &x [1]\nb: *x\n")
    assert (value, findings) == ({"a": [1], "b": [1]}, [])
    assert value["a"] is not value["b"]


@pytest.mark.parametrize(
    "text", ["a: b: c", "{", "'", "a: *nothing", "\x00", "%YAML 3.0\n---\na", "!<", '"\\U99999999"', "a: !!int x\n\tb", "&"]
)
def test_text_that_is_no_yaml_is_unreadable(text):
    with pytest.raises(Unreadable):
        parse_yaml(text)


def test_checking_a_document_imports_neither_torch_nor_deepspeed(path):
    code = f"""
import sys
from trainer.check import load_spec
from trainer.errors import SpecError
load_spec({str(path)!r})
try:
    load_spec({str(path)!r}, ["models.trunk=trainer.nets:nothing", "tasks.digit.metrics=[r2]", "train.bach=1"])
except SpecError as error:
    assert len(error.faults) == 3, error
else:
    raise AssertionError
heavy = {{"torch", "deepspeed", "kfp", "boto3", "torchmetrics", "sklearn", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the current folder whose import would be noticed."""
    folder = tmp_path / "lazy"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "nets.py").write_text(
        "import sys\ntry:\n    def inner(): ...\nfinally:\n    pass\nmade = also = 1\nclass Net: ...\nfrom math import pi as tau\n"
    )
    (folder / "any.py").write_text("def __getattr__(name): ...\n")
    (folder / "star.py").write_text("from math import *\n")
    (folder / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    "reference",
    ["lazy.nets:inner", "lazy.nets:made", "lazy.nets:also", "lazy.nets:Net", "lazy.nets:tau", "lazy.any:x", "lazy.star:sin", "math:sin"],
)
def test_a_function_that_is_or_may_be_there_is_no_fault_and_is_not_imported(reference, package):
    assert references.trouble(reference) is None
    assert "lazy" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "finding"),
    [
        ("lazy.nets:outer", "module 'lazy.nets' defines no 'outer'"),
        ("lazy.nest:inner", "there is no module 'lazy.nest' in package 'lazy'"),
        ("lazy.nets.inner:x", "module 'lazy.nets' is no package"),
        ("lazier:x", "there is no module 'lazier' in the Python path or the current folder"),
    ],
)
def test_a_function_that_is_not_there_is_a_fault(reference, finding, package):
    assert references.trouble(reference)[0] == finding
    assert "lazy" not in sys.modules


def test_a_module_with_bad_syntax_is_a_fault(package):
    assert references.trouble("lazy.broken:f")[0].startswith(f"{package / 'broken.py'} is no Python: invalid syntax")


def test_a_dataset_tells_what_it_sees_of_its_source(tmp_path):
    document = yaml.safe_load(TEXT.replace("3e-4", "0.0003"))
    document["data"]["digits"] = {
        "kind": "csv",
        "uri": str(tmp_path / "no.csv"),
        "columns": {"image": {"kind": "vector", "size": 2}, "digit": "category", "ink": "number"},
    }
    document["seed"] = -1
    with pytest.raises(SpecError) as caught:
        load_spec(document)
    places = [fault.place for fault in caught.value.faults]
    assert len(places) == 2
    assert places[0].startswith("document: data.digits")
    assert places[1] == "document: seed"


def test_a_step_after_preparing_need_not_see_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "rows.jsonl"
    source.write_text('{"x": 1, "y": 2}\n')
    document = {
        "name": "job",
        "data": {"rows": {"kind": "jsonl", "uri": "rows.jsonl", "columns": {"x": "number", "y": "number"}}},
        "models": {"trunk": "mlp"},
        "tasks": {"y": {"data": "rows", "model": "trunk", "input": "x", "target": "y"}},
        "phases": {"only": {"epochs": 1}},
    }
    spec = load_spec(document)
    source.unlink()
    assert load_spec(spec.to_json(), sources=False) == spec
    with pytest.raises(SpecError):
        load_spec(spec.to_json())
