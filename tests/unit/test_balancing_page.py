"""docs/balancing.md says what the balancers and the check say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from trainer.catalog import CATALOG, find
from trainer.check import load_spec
from trainer.errors import SpecError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "balancing.md").read_text()


def test_the_table_of_methods_is_what_their_classes_say_today():
    spec = importlib.util.spec_from_file_location("balancer_table", ROOT / "scripts" / "balancer_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == PAGE, "run: make docs"


@pytest.mark.parametrize("kind", CATALOG["balancer"])
def test_each_method_is_shown_with_its_source_and_its_promises(kind):
    method = find("balancer", kind)
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| [`{kind}`]")]
    *_, reads, conflict_free, positive = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert (f"`{method.default_gram}`" in reads) == method.needs_gram
    assert (conflict_free == "yes", positive == "yes") == (method.conflict_free, method.positive)


def test_links_into_the_reference_lead_to_its_headings():
    reference = (ROOT / "docs" / "spec.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).strip().replace(" ", "-").lower() for line in reference.splitlines() if line[:1] == "#"
    }
    assert set(re.findall(r"\(spec\.md#([^)]+)\)", PAGE)) <= anchors


def test_what_is_refused_is_refused_in_these_words(tmp_path):
    document = yaml.safe_load((ROOT / "examples" / "01-digits.yaml").read_text())
    joint = document["phases"]["joint"]
    own = {"models": {task: {"kind": "mlp"} for task in document["tasks"]}}
    own["tasks"] = {name: task | {"model": name} for name, task in document["tasks"].items()}
    cases = [
        {"phases": {"joint": joint | {"balancer": "upgrad", "tasks": ["digit"]}}},
        {"phases": {"joint": joint | {"balancer": "upgrad"}}, **own},
        {"phases": {"joint": joint | {"balancer": "upgrad", "train": []}}},
        {"phases": {"joint": joint | {"balancer": "upgrad", "mixer": {"kind": "round_robin", "over": "tasks"}}}},
        {"phases": {"joint": joint | {"balancer": {"kind": "dwa", "gram": "exact"}}}},
        {"phases": {"joint": joint | {"balancer": {"kind": "grad_drop", "gram": "exact"}}}},
        {"phases": {"joint": joint | {"balancer": {"kind": "upgrad", "gram": {"source": "last_layer", "every": 50}}}}},
        {"phases": {"joint": joint | {"balancer": {"kind": "upgrad", "gram": {"source": "last_layer", "layer": "layers.1"}}}}},
    ]
    told = re.findall(r"^\|[^|]*\| `([^`|]+)` \| `([^`|]+)` \|$", PAGE, re.M)
    assert len(told) == len(cases)
    for change, (finding, remedy) in zip(cases, told, strict=True):
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(document | change))
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / "job.yaml")
        assert f"{finding}\n    fix: {remedy}" in str(caught.value)
