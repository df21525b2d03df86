"""The one pipeline, driven by the document. It runs on a cluster and, by KFP's local runner, on a laptop.

The local runner takes loop items from a component's only output, which is why planning is one step per loop.
"""

from kfp import dsl

from components import steps


@dsl.pipeline(name="cotrain", description="Train jointly and prove, per task, that it paid off.")
def joint(spec: str, root: str):
    """check → prepare → train joint and independent → evaluate → compare → publish → report.

    Args:
        spec: The JointSpec as JSON, or the URI of one.
        root: Where results are kept: `s3://bucket/prefix`, or a folder every step can reach.
    """
    checked = steps.check(spec=spec, root=root)
    with dsl.ParallelFor(checked.output) as item:
        prepared = steps.prepare(item=item, root=root)
    data = dsl.Collected(prepared.output)

    runs = steps.plan_joint(prepared=data, root=root)
    with dsl.ParallelFor(runs.output) as run:
        trained = steps.train(run=run, root=root).set_display_name("train joint")
    baselines = steps.plan_independent(prepared=data, root=root)
    with dsl.ParallelFor(baselines.output) as run:
        alone = steps.train(run=run, root=root).set_display_name("train independent")

    planned = steps.plan_evaluation(prepared=data, joint=dsl.Collected(trained.output), independent=dsl.Collected(alone.output))
    with dsl.ParallelFor(planned.output) as item:
        scored = steps.evaluate(item=item, root=root)
    scores = dsl.Collected(scored.outputs["Output"])

    verdict = steps.compare(scores=scores, root=root)
    outcome = steps.publish(verdict=verdict.outputs["Output"], scores=scores, root=root)
    steps.report(outcome=outcome.output, verdict=verdict.outputs["Output"], prepared=data, scores=scores, root=root)
