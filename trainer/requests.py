"""What is to be trained: the joint runs and the baselines of a document, each as a request with the key of its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainer.errors import Fault, LaunchError
from trainer.plan import independent, train_relevant
from trainer.results import key_of
from trainer.spec import JointSpec
from trainer.stores import open_store

Json = dict[str, Any]
Prepared = Mapping[str, Json]
"""Per dataset its `key`, `digest` and training `rows`."""


def joint_requests(spec: JointSpec, data: Prepared) -> list[Json]:
    """One request per seed for the whole document."""
    return [_request(spec, data, "joint", None, spec.seed + n) for n in range(spec.seeds)]


def independent_requests(spec: JointSpec, data: Prepared) -> list[Json]:
    """One request per task and seed, derived from the document; none if it asks for no comparison.

    A document of a single task asks for what its joint run is: both have one key and it is trained once.
    """
    if not spec.compare.independent:
        return []
    rows = {name: int(entry["rows"]["train"]) for name, entry in data.items()}
    seeds = [spec.seed + n for n in range(spec.seeds)]
    return [
        _request(spec if len(spec.tasks) == 1 else independent(spec, task, rows, seed), data, "independent", task, seed)
        for task in spec.judged_tasks
        for seed in seeds
    ]


def write_request(root: str, request: Json) -> None:
    """Put a request where the ranks of its run find it."""
    open_store(root).write(f"requests/train/{request['key']}.json", json.dumps(request).encode())


def read_request(root: str, key: str) -> Json:
    """A request by its key."""
    return json.loads(open_store(root).read(f"requests/train/{key}.json"))


def spec_of(request: Json) -> JointSpec:
    """The document of a request, which whoever launches has checked.

    Raises:
        LaunchError: if that was another version of cotrain: the image of training pods need not be the launcher's.
    """
    try:
        return JointSpec.model_validate(request["spec"])
    except ValidationError as error:
        remedy = "train with the version that launches: COTRAIN_IMAGE, or the image of the runtime in k8s/base"
        raise LaunchError(
            Fault(".".join(map(str, found["loc"])), f"{found['msg']}: the request is of another version of cotrain than this one", remedy)
            for found in error.errors()
        ) from None


def _request(spec: JointSpec, data: Prepared, role: str, task: str | None, seed: int) -> Json:
    used = {name: {"key": data[name]["key"], "digest": data[name]["digest"]} for name in spec.data}
    key = key_of("train", train_relevant(spec), {name: entry["digest"] for name, entry in used.items()}, seed)
    return {"key": key, "role": role, "task": task, "seed": seed, "spec": spec.to_json(), "data": used}
