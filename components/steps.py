"""The steps of the pipeline. Each carries values and holds no logic: what it does is a function of `trainer`.

A component carries only its own source, so it imports what it needs when it runs. What a step passes on
is a small JSON value that names results by key; bytes go through the store at `root`, and artifacts say where there.
"""

from typing import List

from kfp import dsl

from components.image import IMAGE

component = dsl.component(base_image=IMAGE, install_kfp_package=False)

# What is asked for on the step that trains is meant for the pods that train: the pod that launches them waits, and has no use for a GPU.
launches = dsl.component(
    base_image=IMAGE,
    install_kfp_package=False,
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        # the step itself needs the store too, by the same variables and, where it is a folder, the same volume
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)


@component
def check(
    spec: str,
    root: str,
    changes: list,
    train_seeds: str,
    train_precision: str,
    train_zero_stage: str,
    cluster_launcher: str,
    cluster_nodes: str,
    cluster_gpus_per_node: str,
    cluster_queue: str,
) -> list:
    """Read and validate the document, and see that the cluster can train it; one item per dataset, with the digest of its source.

    Args:
        spec: The document as JSON, or where it is.
        root: Where results are kept.
        changes: Fields to change, each as 'path=value'.
        train_seeds: This and the rest: one field each, as the document has it where empty or 'spec'.
    """
    from components.guard import step
    from components.launch import look
    from components.parameters import overrides
    from trainer.flow import start

    settings = {
        "train_seeds": train_seeds,
        "train_precision": train_precision,
        "train_zero_stage": train_zero_stage,
        "cluster_launcher": cluster_launcher,
        "cluster_nodes": cluster_nodes,
        "cluster_gpus_per_node": cluster_gpus_per_node,
        "cluster_queue": cluster_queue,
    }
    with step("check", root):
        found = start(spec, root, overrides(settings, changes))
        look(root, found)
        return found


@component
def prepare(item: dict, root: str, data: dsl.Output[dsl.Dataset]) -> dict:
    """Validate, split, encode and shard one dataset."""
    from components.guard import step
    from trainer.flow import prepare_item, uri_of

    with step("prepare", root, dataset=item["dataset"]) as found:
        prepared, found["reused"] = prepare_item(item, root)
        data.uri, data.metadata["rows"] = uri_of(root, "data", prepared["key"]), prepared["rows"]
        return prepared


@component
def plan_joint(prepared: List[dict], root: str) -> list:
    """The joint runs, one per seed, by key."""
    from components.guard import step
    from trainer.flow import plan_runs
    from trainer.outcomes import marked

    with step("plan joint", root):
        return marked(plan_runs(prepared, "joint", root), "train", root)


@component
def plan_independent(prepared: List[dict], root: str) -> list:
    """The baselines, one per task and seed, by key; an item without a key if the document compares with nothing."""
    from components.guard import step
    from trainer.flow import plan_runs
    from trainer.outcomes import marked

    with step("plan independent", root):
        return marked(plan_runs(prepared, "independent", root), "train", root)


@launches
def train(
    run: dict,
    root: str,
    image: str,
    model: dsl.Output[dsl.Model],
    work: dsl.Output[dsl.Metrics],
    job: dsl.Output[dsl.Markdown],
    pods: dsl.TaskConfig = None,
) -> dict:
    """Train one run, or find that it was trained. Nothing happens for an item without a key.

    Args:
        run: What to train, by key.
        root: Where results are kept.
        image: Image of the pods that train; empty: that of this step.
        model: Where the trained model is.
        work: What it cost: hours, hours of all ranks, restarts, hours in queues.
        job: How the job went, and what it survived.
        pods: What was asked for on this step, for the pods that train.
    """
    from components.guard import step
    from components.launch import launch
    from trainer.flow import uri_of
    from trainer.requests import read_request

    if not run["key"]:
        return run
    request = read_request(root, run["key"])
    with step("train", root, role=request["role"], task=request["task"], seed=request["seed"], key=run["key"]) as found:
        done = launch(root, request, image, pods)
        found["reused"] = done.result.reused
        model.uri = uri_of(root, "train", run["key"])
        for name, value in done.work.items():
            work.log_metric(name, value)
        with open(job.path, "w") as file:
            file.write(done.page)
        return run


@component
def plan_evaluation(prepared: List[dict], joint: List[dict], independent: List[dict], root: str) -> list:
    """What is compared on each task."""
    from components.guard import step
    from trainer.flow import plan_scores

    with step("plan evaluation", root):
        return plan_scores(prepared, joint, independent)


@component
def evaluate(item: dict, root: str, metrics: dsl.Output[dsl.Metrics], confusion: dsl.Output[dsl.ClassificationMetrics]) -> dict:
    """Score every model of one task on its test split."""
    from components.guard import step
    from trainer.flow import score_task

    with step("evaluate", root, task=item["task"]) as found:
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

    with step("compare", root) as found:
        result = judge(scores, root)
        verdict = result.json("verdict.json")
        found.update(key=result.key, reused=result.reused, passed=verdict["gate"]["passed"])
        metrics.log_metric("tasks helped", verdict["helped"])
        metrics.log_metric("tasks hurt", verdict["hurt"])
        metrics.log_metric("gate passed", float(verdict["gate"]["passed"]))
        return {"spec": scores[0]["spec"], "key": result.key}


@component
def publish(verdict: dict, scores: List[dict], root: str, model: dsl.Output[dsl.Model]) -> dict:
    """Publish and promote the joint model if every gate passed; else say why not."""
    from components.guard import step
    from trainer.flow import promote

    with step("publish", root) as found:
        outcome, found["reused"] = promote(verdict, scores, root)
        found.update(outcome)
        if outcome["published"]:
            model.uri, model.metadata["version"] = outcome["published"], outcome["version"]
        return outcome


@component
def report(outcome: dict, verdict: dict, prepared: List[dict], scores: List[dict], root: str, page: dsl.Output[dsl.HTML]) -> str:
    """Write the report as one page, and that the run is done."""
    import shutil

    from components.guard import run_id, step
    from trainer.flow import finish, write_page

    with step("report", root) as found:
        result = write_page(outcome, verdict, prepared, scores, root)
        found.update(key=result.key, reused=result.reused)
        shutil.copy(result.folder / "report.html", page.path)
        finish(prepared, verdict, result.key, outcome, root, run_id())
        return result.key


@component
def causes(status: dsl.PipelineTaskFinalStatus, root: str, page: dsl.Output[dsl.Markdown]) -> str:
    """Say what came of a run: the verdict, or why it failed. Runs last, whatever happened before.

    Args:
        status: How the run ended.
        root: Where results are kept.
        page: The verdict on each task, or what each step that failed left, the first of them first.
    """
    from components.guard import causes_page

    text = causes_page(root, status.state)
    with open(page.path, "w") as file:
        file.write(text)
    return status.state
