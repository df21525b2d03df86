"""A training request with a key of its own, as the tests of manifests need it: the key of a real one changes with the code."""

from __future__ import annotations

from typing import Any

from components.target import Owner, Target
from trainer.check import load_spec
from trainer.requests import joint_requests

KEY = "0123456789abcdef01234567"
TARGET = Target(
    "s3://lake/cotrain",
    namespace="research",
    image="registry.example.com/cotrain:1",
    run_id="5f0e8a52",
    owner=Owner("train-joint-x7k2p", "11111111-2222-3333-4444-555555555555"),
    store_secret="lake-credentials",
)


def request(*overrides: str, spec: str = "examples/01-digits.yaml", **changed: Any) -> dict[str, Any]:
    """The joint request of an example on two nodes, by default."""
    found = load_spec(spec, ("cluster.nodes=2", *overrides))
    data = {name: {"key": f"{name}-key", "digest": f"{name}-digest", "rows": {"train": 1000}} for name in found.data}
    return {**joint_requests(found, data)[0], "key": KEY, **changed}
