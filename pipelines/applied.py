"""What a cluster would be sent for a document: `cotrain plan --manifests`, ready for `kubectl apply -f -`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from components.manifests import render
from components.target import Target, launcher_of
from trainer.errors import LaunchError
from trainer.prepare import prepare
from trainer.requests import independent_requests, joint_requests, write_request
from trainer.results import fetch
from trainer.spec import JointSpec

Json = dict[str, Any]


def text(spec: JointSpec, root: str) -> str:
    """The objects of every training run that is still to be done, as YAML.

    Data is prepared on the way, for keys depend on it, and the requests that pods read are written: what is printed can be applied.

    Raises:
        LaunchError: if the document is trained on this machine.
    """
    launcher = launcher_of(spec.cluster.model_dump())
    if launcher == "local":
        raise LaunchError.at(
            "cluster.launcher", "local: nothing would be sent to a cluster", "write --set cluster.launcher=trainjob, or job"
        )
    target = Target.from_environment(root)
    # by way of JSON: what is said twice is written twice, not as a reference
    return yaml.safe_dump_all((json.loads(json.dumps(thing)) for thing in _objects(spec, target, launcher)), sort_keys=False, width=120)


def _objects(spec: JointSpec, target: Target, launcher: str) -> Iterator[Json]:
    data = {}
    for name, part in spec.data.items():
        result = prepare(name, part, target.root)
        manifest = result.json("manifest.json")
        data[name] = {"key": result.key, "digest": manifest["digest"], "rows": manifest["rows"]}
    requests = {request["key"]: request for request in joint_requests(spec, data) + independent_requests(spec, data)}
    for key, request in requests.items():
        if fetch(target.root, "train", key) is None:
            write_request(target.root, request)
            yield from render(request, target, launcher)
