"""Commands that speak to Kubeflow Pipelines: submit, retrain, status, logs, cancel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from pipelines.options import Set, Spec, told
from trainer.errors import Fault, UserError

if TYPE_CHECKING:
    from pipelines.kfp_client import Kfp

Root = click.option(
    "--root", envvar="COTRAIN_ROOT", required=True, metavar="URI", help="Where results are kept: s3://bucket/prefix (also: COTRAIN_ROOT)."
)
Run = click.argument("run", metavar="RUN")
Wait = click.option("--wait/--no-wait", default=False, help="Wait for the run to end, and end as it did.")
Timeout = click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this.")
POLL_S = float(os.environ.get("COTRAIN_POLL_S", "5"))


def server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which server, and who asks: the command gets `connect`, which reaches it when it is called."""

    @click.option("--kfp", "endpoint", envvar="KFP_ENDPOINT", metavar="URL", help="Kubeflow Pipelines API (also: KFP_ENDPOINT).")
    @click.option("--namespace", envvar="KFP_NAMESPACE", metavar="NAME", help="Profile whose runs these are, if there are several users.")
    @click.option(
        "--token-file", metavar="FILE", help="Token of a service account (also: KF_PIPELINES_SA_TOKEN_PATH; a token itself: KFP_TOKEN)."
    )
    @click.option("--ca-file", envvar="KFP_CA_FILE", metavar="FILE", help="Certificate authority of the server.")
    @wraps(command)
    def run(*args: Any, endpoint: str | None, namespace: str | None, token_file: str | None, ca_file: str | None, **kwargs: Any) -> Any:
        def connect() -> Kfp:
            from pipelines.kfp_client import Access, Kfp

            given = {"namespace": namespace, "token_file": token_file, "ca_file": ca_file}
            given |= {"token": os.environ.get("KFP_TOKEN") or None, "cookie": os.environ.get("KFP_COOKIE") or None}
            return Kfp(Access.found(endpoint, **given))

        return command(*args, connect=connect, **kwargs)

    return run


def how(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how a run is submitted: the command gets a `Submission`."""

    @click.option("--experiment", default="cotrain", show_default=True, help="Experiment that runs are shown under.")
    @click.option("--image", envvar="COTRAIN_IMAGE", help="Image of every step (also: COTRAIN_IMAGE). Name it by its digest.")
    @click.option("--service-account", help="Service account of the steps. Default: the server's own choice.")
    @Root
    @told
    @wraps(command)
    def run(*args: Any, root: str, experiment: str, image: str | None, service_account: str | None, **kwargs: Any) -> Any:
        from pipelines.submit import Submission, remote

        if not image:
            remedy = "give --image registry.example.com/cotrain@sha256:..., or set COTRAIN_IMAGE; `make image` builds one"
            raise UserError.at("--image", "is not given: pods of the steps would wait for ever for one that no registry has", remedy)
        return command(*args, how=Submission(remote(root), experiment, image, service_account), **kwargs)

    return run


@click.command()
@Spec
@Set
@how
@server
@Wait
@Timeout
@told
def submit(spec: str, overrides: tuple[str, ...], how: Any, connect: Callable[[], Kfp], wait: bool, timeout_s: float | None) -> None:
    """Run the pipeline on a cluster. Uploads it if the server does not have this version of it."""
    from pipelines import submit as jobs
    from trainer.check import load_spec

    found = load_spec(spec, overrides, sources=False)
    given = jobs.parameters(found, how.root)
    kfp = connect()
    made = jobs.submit(kfp, how, jobs.stamped(found.name), given)
    click.echo(f"pipeline: {'uploaded' if made.uploaded else 'unchanged'}")
    click.echo(f"run: {made.run}\n{made.url}")
    if wait:
        _wait(kfp, made.run, how.root, timeout_s)


@click.command()
@Spec
@Set
@how
@server
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the run, and end as its gates say.")
@Timeout
@told
def retrain(spec: str, overrides: tuple[str, ...], how: Any, connect: Callable[[], Kfp], wait: bool, timeout_s: float | None) -> None:
    """Submit a run if data, document or code has changed since the last one; say so in seconds if not.

    However many ask at once, one run is submitted, and all wait for it.
    """
    from pipelines import retrain as again
    from pipelines.submit import verdict
    from trainer.check import load_spec

    kfps: list[Kfp] = []

    def once() -> Kfp:
        kfps.append(connect())
        return kfps[0]

    found = again.retrain(load_spec(spec, overrides), how, once, click.echo)
    click.echo(f"key: {found.key}")
    if found.done:
        click.echo(f"unchanged since {found.done['finished_at']}: nothing submitted")
        for line in verdict(how.root, found.done):
            click.echo(line)
        if not found.done["published"]:
            click.echo("a gate said no then: nothing was published")
        return
    click.echo(f"{'submitted' if found.submitted else 'submitted already'}: {found.run}\n{kfps[0].url(found.run)}")
    if wait:
        _wait(kfps[0], found.run, how.root, timeout_s, found.key)


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@server
@Wait
@Timeout
@click.option("--experiment", default="cotrain", show_default=True, help="Whose newest runs are shown where none is named.")
@click.option("--root", envvar="COTRAIN_ROOT", metavar="URI", help="Where its results are: then it is said what came of it.")
@told
def status(run: str | None, connect: Callable[[], Kfp], wait: bool, timeout_s: float | None, experiment: str, root: str | None) -> None:
    """Say how a run is doing, step for step; without RUN, the newest runs."""
    from pipelines import submit as jobs

    kfp = connect()
    if run is None:
        for one in kfp.newest(experiment):
            click.echo(f"{one.run_id}  {str(one.state or 'PENDING').lower():<10} {one.created_at:%Y-%m-%d %H:%M}  {one.display_name}")
        return
    found = kfp.run(run)
    click.echo(f"{found.display_name}: {str(found.state or 'PENDING').lower()}\n{kfp.url(run)}")
    for name, state, seconds, _ in jobs.steps(found):
        click.echo(f"  {state.lower():<10} {'' if seconds is None else f'{seconds:.0f} s':>8}  {name}")
    if wait:
        if not root:
            raise UserError.at("--root", "is not given, so what came of the run can't be read", "give --root, or set COTRAIN_ROOT")
        _wait(kfp, run, root, timeout_s)
    elif root:
        for cause in jobs.causes(root, run):
            click.echo(f"\n{cause['step']} failed: {cause['text']}")
        done = jobs.outcome_of(root, run)
        for line in jobs.verdict(root, done) if done else ():
            click.echo(line)


@click.command()
@Run
@server
@click.option("--step", "wanted", multiple=True, metavar="NAME", help="Only steps whose name begins so. Repeatable.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@told
def logs(run: str, connect: Callable[[], Kfp], wanted: tuple[str, ...], follow: bool) -> None:
    """Print what the steps of a run say; the training step says what its pods do."""
    from pipelines.kfp_client import ENDED
    from pipelines.submit import steps

    kfp = connect()
    printed: dict[str, int] = {}
    while True:
        found = kfp.run(run)
        over = str(found.state).upper() in ENDED
        for name, _, _, pods in steps(found):
            if wanted and not name.startswith(wanted):
                continue
            for pod in pods:
                lines = kfp.log(run, pod).splitlines(keepends=True)
                whole = lines if over or not lines or lines[-1].endswith("\n") else lines[:-1]
                for line in whole[printed.get(pod, 0) :]:
                    click.echo(f"[{name}] {line.rstrip()}")
                printed[pod] = max(printed.get(pod, 0), len(whole))
        if over or not follow:
            break
        time.sleep(POLL_S)
    if not printed:
        click.echo("no step of it has a pod" + (" any more" if over else " yet"), err=True)


@click.command()
@Run
@server
@click.option("--jobs-in", metavar="NAME", help="Namespace of its training jobs. Default: --namespace, else kubeflow.")
@told
def cancel(run: str, connect: Callable[[], Kfp], jobs_in: str | None) -> None:
    """End a run, and delete the training jobs that it launched, unless another run waits for them."""
    from components.cluster import Cluster
    from pipelines.cancel import delete_jobs, left
    from pipelines.kfp_client import ENDED

    kfp = connect()
    state = str(kfp.run(run).state).upper()
    if state in ENDED:
        click.echo(f"{run} has ended before, as {state.lower()}")
    else:
        kfp.terminate(run)
        click.echo(f"{run} is being terminated")
    where = jobs_in or kfp.access.namespace or "kubeflow"
    try:
        cluster = Cluster.connect(where)
    except UserError as error:
        look = f"kubectl -n {where} delete trainjobs,jobs -l {_label(run)}"
        raise UserError(
            [*error.faults, Fault(f"jobs of {run}", "are left to the next `cotrain sweep`", f"or delete them: {look}")]
        ) from None
    for orphan in delete_jobs(cluster, run):
        click.echo(f"deleted {orphan}")
    for name in left(cluster, run):
        click.echo(f"left {name}: another run waits for it")


def _label(run: str) -> str:
    from components.manifests import RUN, label

    return f"{RUN}={label(run)}"


def _wait(kfp: Kfp, run: str, root: str, timeout_s: float | None, key: str | None = None) -> None:
    """Wait for a run, say how its steps go, and end as it did."""
    from pipelines.submit import settled, steps

    told_of: dict[tuple[str, int], str] = {}

    def seen(now: Any) -> None:
        count: dict[str, int] = {}
        for name, state, _, _ in steps(now):
            count[name] = count.get(name, 0) + 1
            if told_of.get((name, count[name])) != state:
                told_of[name, count[name]] = state
                click.echo(f"  {name}: {state.lower()}")

    try:
        ended = kfp.wait(run, timeout_s, seen, POLL_S)
    except KeyboardInterrupt:
        click.echo(f"the run goes on; end it with: cotrain cancel {run}", err=True)
        raise
    for line in settled(root, ended, key):
        click.echo(line)


COMMANDS = (submit, retrain, status, logs, cancel)
