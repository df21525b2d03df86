"""The one pipeline, driven by the document. It runs on a cluster and, by KFP's local runner, on a laptop.

The local runner takes loop items from a component's only output, which is why planning is one step per loop.
"""

from kfp import dsl

from components import steps


@dsl.pipeline(name="cotrain", description="Train jointly and prove, per task, that it paid off.")
def joint(spec: str, root: str) -> None:
    """Check → prepare → train joint and independent → evaluate → compare → publish → report.

    Args:
        spec: The JointSpec as JSON, or the URI of one.
        root: Where results are kept: `s3://bucket/prefix`, or a folder every step can reach.
    """
    checked = steps.check(spec=spec, root=root)
    with dsl.ParallelFor(checked.output) as item:
        prepared = steps.prepare(item=item, root=root)

    runs = steps.plan_joint(prepared=dsl.Collected(prepared.output), root=root)
    with dsl.ParallelFor(runs.output) as run:
        trained = steps.train(run=run, root=root).set_display_name("train joint")
    baselines = steps.plan_independent(prepared=dsl.Collected(prepared.output), root=root)
    with dsl.ParallelFor(baselines.output) as run:
        alone = steps.train(run=run, root=root).set_display_name("train independent")

    planned = steps.plan_evaluation(
        prepared=dsl.Collected(prepared.output),
        joint=dsl.Collected(trained.output),
        independent=dsl.Collected(alone.output),
    )
    with dsl.ParallelFor(planned.output) as item:
        scored = steps.evaluate(item=item, root=root)

    # KFP changes a Collected when a task takes it, so each task gets one of its own
    judged = steps.compare(scores=dsl.Collected(scored.outputs["Output"]), root=root)
    verdict = judged.outputs["Output"]
    outcome = steps.publish(verdict=verdict, scores=dsl.Collected(scored.outputs["Output"]), root=root).output
    steps.report(
        outcome=outcome,
        verdict=verdict,
        prepared=dsl.Collected(prepared.output),
        scores=dsl.Collected(scored.outputs["Output"]),
        root=root,
    )
