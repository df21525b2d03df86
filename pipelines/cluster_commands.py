"""What commands ask of Kubernetes itself: sweep, and whether a document could be trained there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.options import told
from trainer.errors import LaunchError

if TYPE_CHECKING:
    from trainer.spec import JointSpec


def look(spec: JointSpec, namespace: str) -> None:
    """See whether a namespace of the cluster could train a document, as far as whoever asks may look.

    What the launching steps may do there is theirs to know: they see to it when they run.

    Raises:
        LaunchError: what the cluster lacks, all of it.
    """
    from components.cluster import lacking, unseen
    from components.launch import probe
    from components.target import Target, launcher_of
    from pipelines.compiled import LAUNCHER

    launcher = launcher_of(spec.cluster.model_dump(), {"COTRAIN_LAUNCHER": LAUNCHER})
    request = probe(spec)
    request["spec"]["cluster"]["launcher"] = launcher
    target = Target.from_environment("", namespace=namespace)
    if launcher == "local":
        return
    if found := lacking(request, target, launcher=False):
        raise LaunchError(found)
    looked_at = ["trainingruntimes"] * (launcher == "trainjob") + ["resourcequotas", "nodes"]
    if blind := unseen(namespace, looked_at):
        click.echo(f"namespace {namespace}: not looked at, for want of rights: {', '.join(blind)}", err=True)


@click.command()
@click.option("--namespace", envvar="COTRAIN_NAMESPACE", metavar="NAME", help="Where to look (also: COTRAIN_NAMESPACE). Default: our own.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--min-age",
    "min_age_s",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave younger jobs alone: whoever launches one may not be known yet.",
)
@told
def sweep(namespace: str | None, dry_run: bool, min_age_s: float) -> None:
    """Delete training jobs that nobody waits for: whose run is finished, was terminated, or is gone."""
    from components.cluster import Cluster, Refused
    from components.sweep import sweep as run
    from components.target import Target
    from components.watching import Interrupted

    where = namespace or Target.from_environment("").namespace
    try:
        found = run(Cluster.connect(where, patience_s=120.0), dry_run, min_age_s)
    except (Refused, Interrupted) as error:
        see = f"kubectl auth can-i --list -n {where}"
        raise LaunchError.at(
            f"namespace {where}", f"can't be swept: {error}", f"bind the Role of k8s/base/sweep.yaml; see: {see}"
        ) from None
    for orphan in found:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {where}/{orphan}")
    click.echo(f"{where}: {len(found)} training job{'' if len(found) == 1 else 's'} that nobody waits for")
