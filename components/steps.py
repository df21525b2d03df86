"""The steps of the pipeline. Each carries values and holds no logic: what it does is a function of `trainer`.

A component carries only its own source, so it imports what it needs when it runs. What a step passes on
is a small JSON value that names results by key; bytes go through the store at `root`.
"""

from typing import List

from kfp import dsl

from components.image import IMAGE

component = dsl.component(base_image=IMAGE, install_kfp_package=False)


@component
def check(spec: str, root: str) -> list:
    """Read and validate the document; one item per dataset.

    Args:
        spec: The document as JSON, or where it is.
        root: Where results are kept.
    """
    from components.guard import step
    from trainer.check import load_spec
    from trainer.flow import keep_spec

    with step("check"):
        resolved = load_spec(spec)
        uri = keep_spec(resolved, root)
        return [{"spec": uri, "dataset": name} for name in resolved.data]


@component
def prepare(item: dict, root: str) -> dict:
    """Validate, split, encode and shard one dataset."""
    from components.guard import step
    from trainer.check import load_spec
    from trainer.prepare import prepare as run

    with step("prepare", dataset=item["dataset"]) as found:
        spec = load_spec(item["spec"], sources=False)
        result = run(item["dataset"], spec.data[item["dataset"]], root)
        manifest = result.json("manifest.json")
        found["reused"] = result.reused
        return {**item, "key": result.key, "digest": manifest["digest"], "rows": manifest["rows"]}


@component
def plan_joint(prepared: List[dict], root: str) -> list:
    """The joint runs, one per seed, by key."""
    from components.guard import step
    from trainer.flow import plan_runs

    with step("plan joint"):
        return plan_runs(prepared, "joint", root)


@component
def plan_independent(prepared: List[dict], root: str) -> list:
    """The baselines, one per task and seed, by key; an item without a key if the document compares with nothing."""
    from components.guard import step
    from trainer.flow import plan_runs

    with step("plan independent"):
        return plan_runs(prepared, "independent", root)


@component
def train(run: dict, root: str) -> dict:
    """Train one run, or find that it was trained. Nothing happens for an item without a key."""
    from components.guard import step
    from components.launch import train_here
    from trainer.requests import read_request

    if not run["key"]:
        return run
    request = read_request(root, run["key"])
    with step("train", role=request["role"], task=request["task"], seed=request["seed"], key=run["key"]) as found:
        found["reused"] = train_here(root, request).reused
        return run


@component
def plan_evaluation(prepared: List[dict], joint: List[dict], independent: List[dict]) -> list:
    """What is compared on each task."""
    from components.guard import step
    from trainer.flow import plan_scores

    with step("plan evaluation"):
        return plan_scores(prepared, joint, independent)


@component
def evaluate(item: dict, root: str, metrics: dsl.Output[dsl.Metrics], confusion: dsl.Output[dsl.ClassificationMetrics]) -> dict:
    """Score every model of one task on its test split."""
    from components.guard import step
    from trainer.flow import score_task

    with step("evaluate", task=item["task"]) as found:
        result = score_task(item, root)
        found["reused"] = result.reused
        scores = result.json("scores.json")
        for role, runs in scores["models"].items():
            for name, entry in (runs[0]["metrics"] if runs else {}).items():
                if entry["value"] is not None:
                    metrics.log_metric(f"{role} {name}", entry["value"])
        if scores["models"]["joint"] and scores["models"]["joint"][0].get("confusion"):
            confusion.log_confusion_matrix([str(c) for c in scores["classes"]], scores["models"]["joint"][0]["confusion"])
        return {**item, "key": result.key}


@component
def compare(scores: List[dict], root: str, metrics: dsl.Output[dsl.Metrics]) -> dict:
    """Judge joint training per task, and the gates."""
    from components.guard import step
    from trainer.flow import judge

    with step("compare") as found:
        result = judge(scores, root)
        verdict = result.json("verdict.json")
        found.update(key=result.key, reused=result.reused, passed=verdict["gate"]["passed"])
        metrics.log_metric("tasks helped", verdict["helped"])
        metrics.log_metric("tasks hurt", verdict["hurt"])
        metrics.log_metric("gate passed", float(verdict["gate"]["passed"]))
        return {"spec": scores[0]["spec"], "key": result.key}


@component
def publish(verdict: dict, scores: List[dict], root: str) -> dict:
    """Publish and promote the joint model if every gate passed; else say why not."""
    from components.guard import step
    from trainer.flow import promote

    with step("publish") as found:
        outcome, found["reused"] = promote(verdict, scores, root)
        found.update(outcome)
        return outcome


@component
def report(outcome: dict, verdict: dict, prepared: List[dict], scores: List[dict], root: str, page: dsl.Output[dsl.HTML]) -> str:
    """Write the report as one page."""
    import shutil

    from components.guard import step
    from trainer.flow import write_page

    with step("report") as found:
        result = write_page(outcome, verdict, prepared, scores, root)
        found.update(key=result.key, reused=result.reused)
        shutil.copy(result.folder / "report.html", page.path)
        return result.key
