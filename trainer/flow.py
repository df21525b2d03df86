"""What the steps of the pipeline pass on, and how they call the stages: small JSON values in, results by key out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from trainer import outcomes
from trainer.check import load_spec
from trainer.errors import CotrainError
from trainer.results import MANIFEST, Result, fetch
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


def start(spec: str, root: str, overrides: Sequence[str]) -> list[Json]:
    """Read and check a document, keep it below the root, and say what is to be prepared (see `outcomes.planned`)."""
    resolved = load_spec(spec, overrides)
    return outcomes.planned(keep_spec(resolved, root), resolved, root, outcomes.data_digests(resolved))


def prepare_item(item: Json, root: str) -> tuple[Json, bool]:
    """Prepare one dataset: the item with the `key`, `digest` and `rows` of what came of it, and whether it was there already."""
    from trainer.prepare import prepare

    spec = load_spec(item["spec"], sources=False)
    result = prepare(item["dataset"], spec.data[item["dataset"]], root)
    manifest = result.json(MANIFEST)
    return {**item, "key": result.key, "digest": manifest["digest"], "rows": manifest["rows"]}, result.reused


def finish(prepared: Sequence[Json], verdict: Json, report: str, outcome: Json, root: str, run: str) -> None:
    """Say below the root that a run is done; `run` is its id, if it has one. What it was asked for counts: its key is that of its start."""
    spec = load_spec(verdict["spec"], sources=False)
    outcomes.record(root, prepared[0]["run"], run, name=spec.name, verdict=verdict["key"], report=report, **outcome)


def uri_of(root: str, stage: str, key: str) -> str:
    """Where a result is."""
    return f"{open_store(root).uri}/results/{stage}/{key}"


def plan_runs(prepared: Sequence[Json], role: str, root: str) -> list[Json]:
    """Write the training requests of a role and return what names them: at least one item, without a key where there is none."""
    from trainer.requests import independent_requests, joint_requests, write_request

    spec = load_spec(prepared[0]["spec"], sources=False)
    data = {item["dataset"]: item for item in prepared}
    requests = {"joint": joint_requests, "independent": independent_requests}[role](spec, data)
    for request in requests:
        write_request(root, request)
    items = [{"spec": prepared[0]["spec"], "key": request["key"], "seed": request["seed"], **_named(request)} for request in requests]
    # KFP's local runner can't collect what comes out of a loop over nothing
    return items or [{"spec": prepared[0]["spec"], "key": "", "seed": spec.seed}]


def _named(request: Json) -> Json:
    """Who a request is for. KFP has no null among the items of a loop: what is not said is left out."""
    return {name: request[name] for name in ("role", "task") if request[name] is not None}


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
            "independent": [run["key"] for run in by_seed if run.get("task") == name],
        }
        for name, task in spec.tasks.items()
        if task.judged
    ]


def score_task(item: Json, root: str) -> Result:
    """Score the models of one task."""
    from trainer.evaluate import evaluate_task

    spec = load_spec(item["spec"], sources=False)
    folders = {role: [_result(root, "train", key).folder for key in item[role]] for role in ("joint", "independent")}
    promoted = _promoted(spec, root, item["joint"])
    champion = (promoted.rpartition("/")[2], _Later(promoted)) if promoted else None
    data = _result(root, "data", item["data"]).folder
    return evaluate_task(item["task"], spec, folders["joint"], folders["independent"], data, root, champion)


def judge(scores: Sequence[Json], root: str) -> Result:
    """Compare on all tasks and apply the gates."""
    from trainer.compare import compare

    spec = load_spec(scores[0]["spec"], sources=False)
    joint = [_trained(root, key) for key in scores[0]["joint"]]
    independent = {item["task"]: [_trained(root, key) for key in item["independent"]] for item in scores}
    return compare(spec, [_result(root, "score", item["key"]).folder for item in scores], joint, independent, root)


def promote(verdict: Json, scores: Sequence[Json], root: str) -> tuple[Json, bool]:
    """Publish the joint model if the gates passed: of several seeds the first, for the verdict speaks of their mean.

    Returns what came of it, and whether that was so already.
    """
    from trainer.publish import publish

    spec = load_spec(verdict["spec"], sources=False)
    found = _result(root, "compare", verdict["key"]).json("verdict.json")
    if not found["gate"]["passed"]:
        reasons = [check["says"] for check in found["gate"]["checks"] if not check["passed"]]
        return {"published": "", "version": "", "promoted": False, "reasons": reasons}, False
    done = publish(_result(root, "train", scores[0]["joint"][0]).folder, found, spec.publish.store or root, spec.publish.models)
    return {"published": done.uri, "version": done.version, "promoted": True, "reasons": []}, done.champion_before == done.version


def write_page(outcome: Json, verdict: Json, prepared: Sequence[Json], scores: Sequence[Json], root: str) -> Result:
    """The report of a run, from its results."""
    from trainer.report import write_report

    spec = load_spec(verdict["spec"], sources=False)
    joint = [_run(root, key, spec) for key in scores[0]["joint"]]
    alone = {item["task"]: [_run(root, key, spec) for key in item["independent"]] for item in scores if item["independent"]}
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


def verdict(root: str, found: Json) -> list[str]:
    """What a finished run says of its tasks, by its outcome (`trainer.outcomes`)."""
    from trainer.compare import sentence

    published = [f"published: {found['published']}"] if found["published"] else []
    return [
        *sentence(_result(root, "compare", found["verdict"]).json("verdict.json")),
        f"report: {uri_of(root, 'report', found['report'])}/report.html",
        *published,
    ]


def _promoted(spec: JointSpec, root: str, joint: Sequence[str]) -> str | None:
    """The URI of the version to compare with, if there is one.

    If the champion is the very model that is judged, it is what it was compared with when it became the champion: a
    run that is done again finds what it did.
    """
    from trainer.publish import champion

    found = champion(spec.publish.store or root, spec.name)
    if found is None:
        return None
    versions, _, _ = found["uri"].rpartition("/")
    now = open_store(found["uri"])
    if json.loads(now.read(MANIFEST)).get("train_key") not in joint:
        return str(found["uri"])
    before = json.loads(now.read("metrics.json")).get("champion")
    return f"{versions}/{before}" if before and open_store(versions).exists(f"{before}/{MANIFEST}") else None


class _Later:
    """A published model that is loaded when it is first used: not at all where the scores are found."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @cached_property
    def _model(self) -> Any:
        from trainer.predict import load

        return load(self._uri)


def _result(root: str, stage: str, key: str) -> Result:
    found = fetch(root, stage, key)
    if found is None:
        raise CotrainError(f"results/{stage}/{key} is gone from {root}: run again to make it anew")
    return found


def _trained(root: str, key: str) -> Json:
    return _result(root, "train", key).json("result.json")


def _run(root: str, key: str, spec: JointSpec) -> Json:
    """A run as the report shows it, less what it recorded of metrics that the document no longer puts first."""
    result = _result(root, "train", key)
    trained = result.json("result.json")
    history = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    same = {
        task for task in trained["tasks"] if spec.tasks[task].judged and _primary(trained["spec"], task) == _primary(spec.to_json(), task)
    }
    for record in history:
        if "metric" in record:
            record["metric"] = {task: value for task, value in record["metric"].items() if task in same}
    return {"result": trained, "history": history}


def _primary(document: Json, task: str) -> Any:
    return document["tasks"][task]["metrics"][0]
