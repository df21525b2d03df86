"""The one pipeline, driven by the document. It runs on a cluster and, by KFP's local runner, on a laptop.

The local runner takes loop items from a component's only output, which is why planning is one step per loop.
Only preparing and training may be answered from the cache of a pipeline server: what they take has the digests of what
they read. The other steps take seconds, and read what changes under one name: the sources, the champion.
"""

from kfp import dsl, kubernetes

from components import steps
from components.guard import RUN
from components.parameters import AS_WRITTEN
from components.store_access import ADDRESS, CA_FOLDER, CREDENTIALS, STORE

# What every step has to know of where it runs, by the names that pods are given them.
PLACE = {
    RUN: "metadata.labels['pipeline/runid']",
    "COTRAIN_POD_NAME": "metadata.name",
    "COTRAIN_POD_UID": "metadata.uid",
    "COTRAIN_NAMESPACE": "metadata.namespace",
}


def placed(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Tell a step its run, its pod and its namespace, and let it into the store, by what k8s/ calls it; all of that may be absent."""
    for name, path in PLACE.items():
        kubernetes.use_field_path_as_env(task, name, path)
    kubernetes.use_secret_as_env(task, STORE, {name: name for name in CREDENTIALS}, optional=True)
    kubernetes.use_config_map_as_env(task, STORE, {name: name for name in ADDRESS}, optional=True)
    kubernetes.use_config_map_as_volume(task, f"{STORE}-ca", CA_FOLDER, optional=True)
    return task


def fresh(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that always runs."""
    return placed(task).set_caching_options(False)


def train(run: dict, root: str, image: str, name: str) -> dsl.pipeline_channel.PipelineChannel:
    """A training step."""
    return placed(steps.train(run=run, root=root, image=image)).set_display_name(name).outputs["Output"]


@dsl.pipeline(name="cotrain", description="Train jointly and prove, per task, that it paid off.")
def joint(
    spec: str,
    root: str,
    changes: list = [],  # noqa: B006 - KFP reads it as the default and changes nothing
    train_seeds: str = "",
    train_precision: str = AS_WRITTEN,
    train_zero_stage: str = AS_WRITTEN,
    cluster_launcher: str = AS_WRITTEN,
    cluster_nodes: str = "",
    cluster_gpus_per_node: str = "",
    cluster_image: str = "",
    cluster_queue: str = "",
) -> None:
    """Check → prepare → train joint and independent → evaluate → compare → publish → report.

    Args:
        spec: What to train: the document as JSON, or the URI of one (s3://bucket/job.yaml).
        root: Where results are kept, found again and published: s3://bucket/prefix, or a folder that every step can reach.
        changes: Fields of the document to change, besides those below: a list of "path=value", such as "train.batch=512".
        train_seeds: Repetitions with other seeds. Empty: as the document has it.
        train_precision: Precision of training. 'spec': as the document has it.
        train_zero_stage: What DeepSpeed shards across ranks. 'spec': as the document has it.
        cluster_launcher: What trains: a TrainJob, an Indexed Job, or this pipeline's own pods. 'spec': as the document has it.
        cluster_nodes: Machines a training run gets. Empty: as the document has it.
        cluster_gpus_per_node: GPUs, and so ranks, per machine; 0 trains on CPUs. Empty: as the document has it.
        cluster_image: Image of the pods that train. Empty: the one that the steps run in.
        cluster_queue: Kueue queue that training waits in. Empty: as the document has it.
    """
    last = fresh(steps.causes(root=root))
    with dsl.ExitHandler(last, name="run"):
        checked = fresh(
            steps.check(
                spec=spec,
                root=root,
                changes=changes,
                train_seeds=train_seeds,
                train_precision=train_precision,
                train_zero_stage=train_zero_stage,
                cluster_launcher=cluster_launcher,
                cluster_nodes=cluster_nodes,
                cluster_gpus_per_node=cluster_gpus_per_node,
                cluster_queue=cluster_queue,
            )
        )
        with dsl.ParallelFor(checked.output) as item:
            prepared = placed(steps.prepare(item=item, root=root)).outputs["Output"]

        runs = fresh(steps.plan_joint(prepared=dsl.Collected(prepared), root=root))
        with dsl.ParallelFor(runs.output) as run:
            trained = train(run, root, cluster_image, "train joint")
        baselines = fresh(steps.plan_independent(prepared=dsl.Collected(prepared), root=root))
        with dsl.ParallelFor(baselines.output) as run:
            alone = train(run, root, cluster_image, "train independent")

        planned = fresh(
            steps.plan_evaluation(
                prepared=dsl.Collected(prepared), joint=dsl.Collected(trained), independent=dsl.Collected(alone), root=root
            )
        )
        with dsl.ParallelFor(planned.output) as item:
            scored = fresh(steps.evaluate(item=item, root=root)).outputs["Output"]

        # KFP changes a Collected when a task takes it, so each task gets one of its own
        verdict = fresh(steps.compare(scores=dsl.Collected(scored), root=root)).outputs["Output"]
        outcome = fresh(steps.publish(verdict=verdict, scores=dsl.Collected(scored), root=root)).outputs["Output"]
        fresh(steps.report(outcome=outcome, verdict=verdict, prepared=dsl.Collected(prepared), scores=dsl.Collected(scored), root=root))
