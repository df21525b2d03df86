"""Whatever is done to a good document, it is a spec or a list of readable faults: never a traceback."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainer.check import load_spec
from trainer.errors import SpecError
from trainer.spec import JointSpec

GOOD = [
    """\
name: digits
seeds: 2
data:
  digits:
    kind: digits
    columns: {image: {kind: image, shape: [1, 8, 8]}, digit: {kind: category, classes: [a, b, c]}, ink: {kind: number, minimum: 0}}
    key: [digit, ink]
    split: {valid: 0.1, test: 0.2}
models:
  trunk: {kind: mlp, hidden: [32, 16], dropout: 0.1}
  eye: {kind: conv, channels: [8, 16]}
tasks:
  digit: {data: digits, model: trunk, input: image, target: digit, objective: {kind: cross_entropy, label_smoothing: 0.1}}
  ink: {data: digits, model: eye, input: [image], target: ink, metrics: [r2, mae], hidden: [8]}
phases:
  first: {tasks: [digit], steps: 10, train: [trunk], optimizer: {kind: sgd, lr: 0.1}}
  both: {epochs: 2, balancer: {kind: static, weights: {digit: 1, ink: 0.5}}, mixer: {kind: temperature, temperature: 3}}
train:
  optimizer: {kind: adamw, lr: 3e-4, betas: [0.9, 0.99]}
  schedule: {kind: linear, warmup: 0.1}
  batch: 64
  accumulate: 2
  zero: {stage: 2, overlap_comm: true}
  precision: bf16
  early_stop: {patience: 3}
  checkpoint: {every_steps: 10, keep: 1}
compare: {confidence: 0.9, gate: {worst_drop: 0.1, beat_champion: [digit]}}
publish: {store: "s3://models/digits"}
observe: {port: 0}
cluster: {nodes: 2, gpus_per_node: 4, queue: research}
""",
    """\
name: lines
data:
  lines: {kind: csv, uri: lines.csv, columns: {words: {kind: text, max_tokens: 16}, x: {kind: vector, size: 2}, y: number, label: category}}
models:
  words: {kind: text_transformer, width: 8, layers: 1, heads: 2}
  both: "trainer.nets:Mlp"
tasks:
  label: {data: lines, model: words, input: words, target: label, metrics: [auroc, {kind: calibration_error, bins: 5}]}
  y: {data: lines, model: both, input: [x, label], target: y, objective: l1}
phases:
  joint: {epochs: 0.5, balancer: uncertainty, mixer: round_robin}
train: {zero: 1, clip: null}
""",
]
DOCUMENTS = [{**yaml.safe_load(text)} for text in GOOD]
DOCUMENTS[0]["train"]["optimizer"]["lr"] = 3e-4  # PyYAML alone reads it as text

WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    "", " ", "a", "\0", "\n", "\ud800", "☃", "É" * 50, "x" * 5000, "kind", "python", "mlp", "digits", "s3://", "gs://a", "file://", "../..", "a:b", ":", "a.b:c",
    "os:path", "trainer.nets:nothing", "..:x", "1e999", "0x10", "nan", "yes", "__class__", "<<",
    [], [[]], [None], [[[[1]]]], ["digit", "digit"], [1, "a", None], {}, {"": 1}, {"kind": None}, {"kind": "mlp"}, {"kind": []}, {"kind": "a:b"}, {"kind": "a.b:c", "args": {"x": {}}},
    {"a": {"b": {"c": []}}}, b"bytes", object(), {1: 2}, (1, 2), {"stage": 3},
]  # fmt: skip

MUTATIONS = ("delete", "rename", "replace", "insert", "duplicate", "swap", "wrap")
weird = st.sampled_from(range(len(WEIRD))).map(WEIRD.__getitem__) | st.text(max_size=8) | st.integers() | st.floats()
edits = st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 10**6), weird), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def lines(tmp_path_factory, monkeypatch):
    """A folder with the file that a document names."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "lines.csv").write_text('words,x,y,label\nsome words,"[1, 2]",0.5,a\n')
    monkeypatch.chdir(folder)
    return folder


def places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        found.append((node, key))
        if isinstance(child, dict | list):
            places(child, found)
    return found


def mutate(document: Any, mutation: str, where: int, value: Any) -> None:
    spots = places(document, [])
    if not spots:
        return
    node, key = spots[where % len(spots)]
    old, value = node[key], copy.deepcopy(value)
    if mutation == "delete":
        del node[key]
    elif mutation == "replace":
        node[key] = value
    elif mutation == "wrap":
        node[key] = [old] if where % 2 else {"kind": old}
    elif mutation == "swap":
        other, name = spots[(where * 7919 + 13) % len(spots)]
        node[key] = copy.deepcopy(other[name])
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(old) if mutation == "duplicate" else value)
    elif mutation == "rename":
        del node[key]
        node[value if isinstance(value, str | int | float) else str(key) + "x"] = old
    else:
        node[value if isinstance(value, str) else f"{key}2"] = copy.deepcopy(old) if mutation == "duplicate" else value


def check(source: Any, sets: tuple[str, ...] = ()) -> JointSpec | None:
    """The spec, or None; fails where it is neither a spec nor faults that say something."""
    try:
        spec = load_spec(source, sets)
    except SpecError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.place and fault.finding and fault.remedy, fault
            assert str(fault).count("\n") == 1, fault
            str(fault).encode()
        assert len(set(error.faults)) == len(error.faults)
        return None
    assert isinstance(spec, JointSpec)
    assert load_spec(spec.to_json()) == spec
    return spec


calm = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("text", GOOD)
def test_the_documents_that_are_mutated_are_good(text, lines):
    (lines / "good.yaml").write_text(text)
    assert check("good.yaml") is not None


@settings(calm, max_examples=2500)
@given(which=st.sampled_from(range(len(DOCUMENTS))), changes=edits)
def test_a_mutated_document_is_a_spec_or_a_list_of_faults(which, changes):
    document = copy.deepcopy(DOCUMENTS[which])
    for change in changes:
        mutate(document, *change)
    check(document)


@settings(calm, max_examples=1200)
@given(
    which=st.sampled_from(range(len(GOOD))),
    cuts=st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.integers(0, 6),
            st.binary(max_size=4) | st.sampled_from([b"{", b"&a ", b"*a", b"!!", b"\n", b"  ", b": ", b"- ", b"'", b"\t", b"%", b"?"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
@example(which=0, cuts=[(0, 0, b'"\\U99999999"')])
@example(which=0, cuts=[(0, 0, b"%YAML x\n---\n")])
@example(which=0, cuts=[(0, 0, b"\xff\xfen\0a\0")])
@example(which=1, cuts=[(0, 0, b'"\\ud800": 1\n')])
def test_a_text_with_broken_bytes_is_a_spec_or_a_list_of_faults(which, cuts, lines):
    data = GOOD[which].encode()
    for start, length, new in cuts:
        start %= len(data) + 1
        data = data[:start] + new + data[start + length :]
    (lines / "cut.yaml").write_bytes(data)
    check("cut.yaml")


PATHS = ["name", "train.batch", "train.zero", "train.zero.stage", "tasks.digit.metrics.0", "tasks.ink.input[1]", "phases.both.balancer", "phases.both.balancer.weights.ink",
         "data.digits.columns.ink.minimum", "models.trunk", "models.new", "cluster", "a", "tasks", "tasks.new.data", "...", "tasks.digit..", "phases.first.tasks.99999999999", "é.ü", ""]  # fmt: skip


@settings(calm, max_examples=400)
@given(
    sets=st.lists(
        st.tuples(
            st.sampled_from(PATHS) | st.text(max_size=6),
            st.sampled_from(["", "=", "=3", "=[a,b]", "={a: 1}", "=null", "=&a [*a]", "='", "=equal", "={kind: mlp}", "=digits"])
            | st.text(max_size=6),
        ).map("".join),
        min_size=1,
        max_size=3,
    ).map(tuple)
)
def test_changes_from_the_command_line_give_a_spec_or_a_list_of_faults(sets):
    check(DOCUMENTS[0], sets)
