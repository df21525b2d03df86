"""What the steps of the pipeline pass on, and how they call the stages: small JSON values in, results by key out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.check import load_spec
from trainer.errors import CotrainError
from trainer.results import Result, fetch
from trainer.spec import JointSpec, digest
from trainer.stores import open_store

Json = dict[str, Any]


def keep_spec(spec: JointSpec, root: str) -> str:
    """Put the resolved document below the root, by its digest, and return its URI: every later step reads the same one."""
    key = f"specs/{digest(spec.to_json())[:24]}.json"
    store = open_store(root)
    if not store.exists(key):
        store.write(key, json.dumps(spec.to_json()).encode())
    return f"{store.uri}/{key}"


def plan_runs(prepared: Sequence[Json], role: str, root: str) -> list[Json]:
    """Write the training requests of a role and return what names them."""
    from trainer.requests import independent_requests, joint_requests, write_request

    spec = load_spec(prepared[0]["spec"], sources=False)
    data = {item["dataset"]: item for item in prepared}
    requests = {"joint": joint_requests, "independent": independent_requests}[role](spec, data)
    for request in requests:
        write_request(root, request)
    # KFP has no null among the items of a loop
    return [{"spec": prepared[0]["spec"], **{name: request[name] or "" for name in ("key", "role", "task")}, "seed": request["seed"]} for request in requests]


def plan_scores(prepared: Sequence[Json], joint: Sequence[Json], independent: Sequence[Json]) -> list[Json]:
    """One item per task: the keys of its data, of the joint runs, and of the runs of the task alone."""
    spec = load_spec(prepared[0]["spec"], sources=False)
    data = {item["dataset"]: item["key"] for item in prepared}
    by_seed = sorted(independent, key=lambda run: run["seed"])
    return [
        {
            "spec": prepared[0]["spec"],
            "task": name,
            "data": data[task.data],
            "joint": [run["key"] for run in sorted(joint, key=lambda run: run["seed"])],
            "independent": [run["key"] for run in by_seed if run["task"] == name],
        }
        for name, task in spec.tasks.items()
    ]


def score_task(item: Json, root: str) -> Result:
    """Score the models of one task."""
    from trainer.evaluate import evaluate_task
    from trainer.predict import load

    spec = load_spec(item["spec"], sources=False)
    folders = {role: [_result(root, "train", key).folder for key in item[role]] for role in ("joint", "independent")}
    promoted = _promoted(spec, root, item["joint"])
    champion = (promoted["version"], load(promoted["uri"])) if promoted else None
    data = _result(root, "data", item["data"]).folder
    return evaluate_task(item["task"], spec, folders["joint"], folders["independent"], data, root, champion)


def judge(scores: Sequence[Json], root: str) -> Result:
    """Compare on all tasks and apply the gates."""
    from trainer.compare import compare

    spec = load_spec(scores[0]["spec"], sources=False)
    joint = [_trained(root, key) for key in scores[0]["joint"]]
    independent = {item["task"]: [_trained(root, key) for key in item["independent"]] for item in scores}
    return compare(spec, [_result(root, "score", item["key"]).folder for item in scores], joint, independent, root)


def promote(verdict: Json, scores: Sequence[Json], root: str) -> Json:
    """Publish the joint model if the gates passed: of several seeds the first, for the verdict speaks of their mean."""
    from trainer.publish import publish

    spec = load_spec(verdict["spec"], sources=False)
    found = _result(root, "compare", verdict["key"]).json("verdict.json")
    reasons = [check["says"] for check in found["gate"]["checks"] if not check["passed"]]
    if not found["gate"]["passed"]:
        return {"published": "", "version": "", "promoted": False, "reasons": reasons}
    done = publish(_result(root, "train", scores[0]["joint"][0]).folder, found, spec.publish.store or root)
    return {"published": done.uri, "version": done.version, "promoted": True, "reasons": []}


def write_page(outcome: Json, verdict: Json, prepared: Sequence[Json], scores: Sequence[Json], root: str) -> Result:
    """The report of a run, from its results."""
    from trainer.report import write_report

    spec = load_spec(verdict["spec"], sources=False)
    joint = [_run(root, key) for key in scores[0]["joint"]]
    alone = {item["task"]: [_run(root, key) for key in item["independent"]] for item in scores if item["independent"]}
    data = {item["dataset"]: _result(root, "data", item["key"]) for item in prepared}
    timings = [
        {"step": f"train {name}", "seconds": run["result"]["seconds"]["total"], "reused": False}
        for name, runs in [("joint", joint), *((f"{task} alone", runs) for task, runs in alone.items())]
        for run in runs
    ]
    return write_report(
        root,
        spec=spec.to_json(),
        verdict=_result(root, "compare", verdict["key"]).json("verdict.json"),
        runs={"joint": joint, "independent": alone},
        data={name: {part: result.json(f"{part}.json") for part in ("manifest", "report", "fitted")} for name, result in data.items()},
        scores={item["task"]: _result(root, "score", item["key"]).json("scores.json") for item in scores},
        timings=timings,
        outcome=outcome | {"published": outcome["published"] or None},
    )


def _promoted(spec: JointSpec, root: str, joint: Sequence[str]) -> Json | None:
    """The champion to compare with; none if it is the very model that is judged."""
    from trainer.publish import champion

    found = champion(spec.publish.store or root, spec.name)
    if found is None:
        return None
    made_by = json.loads(open_store(found["uri"]).read("manifest.json")).get("train_key")
    return None if made_by in joint else found


def _result(root: str, stage: str, key: str) -> Result:
    found = fetch(root, stage, key)
    if found is None:
        raise CotrainError(f"results/{stage}/{key} is gone from {root}: run again to make it anew")
    return found


def _trained(root: str, key: str) -> Json:
    return _result(root, "train", key).json("result.json")


def _run(root: str, key: str) -> Json:
    result = _result(root, "train", key)
    history = [json.loads(line) for line in Path(result.folder / "history.jsonl").read_text().splitlines()]
    return {"result": result.json("result.json"), "history": history}
