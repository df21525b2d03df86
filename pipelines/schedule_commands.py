"""`cotrain schedule`: recurring runs of Kubeflow Pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipelines.options import Set, Spec, told
from pipelines.remote_commands import how, server
from trainer.errors import UserError

if TYPE_CHECKING:
    from pipelines.kfp_client import Kfp


@click.group()
def schedule() -> None:
    """Run a document again and again on a cluster; what has not changed is not done again."""


@schedule.command("create")
@Spec
@Set
@how
@server
@click.option("--name", help="Of the schedule; one of the same name is replaced. Default: the document's.")
@click.option(
    "--cron",
    metavar="EXPR",
    help="Minute, hour, day, month, weekday; or six fields, seconds first. In the server's time zone, most often UTC.",
)
@click.option("--every", metavar="TIME", help="Instead of --cron: 30m, 6h, 7d.")
@click.option("--catch-up/--no-catch-up", default=False, show_default=True, help="Make up for the times that were missed, each of them.")
@click.option("--max-concurrency", type=click.IntRange(1, 10), default=1, show_default=True, help="Runs at a time.")
@click.option("--start", metavar="TIME", help="Not before, as 2027-01-31T00:00:00Z.")
@click.option("--end", metavar="TIME", help="Not after.")
@click.option("--disabled", is_flag=True, help="Make it, but let it not start anything yet.")
@told
def create(
    spec: str, overrides: tuple[str, ...], how: Any, connect: Callable[[], Kfp], name: str | None, cron: str | None, every: str | None,
    catch_up: bool, max_concurrency: int, start: str | None, end: str | None, disabled: bool,
) -> None:  # fmt: skip
    """Make a schedule. A SPEC that is a URI is read anew by each of its runs."""
    from pipelines import submit as jobs
    from trainer.check import load_spec

    if bool(cron) == bool(every):
        raise UserError.at("schedule create", "needs one of --cron and --every", "give one: --cron '30 2 * * *', or --every 6h")
    when: dict[str, Any] = {"cron_expression": jobs.cron_of(cron)} if cron else {"interval_second": jobs.seconds_of(str(every))}
    when |= {f"{end_of}_time": jobs.time_of(f"--{end_of}", text) for end_of, text in (("start", start), ("end", end)) if text}
    found = load_spec(spec, overrides, sources=False)
    read_anew = "://" in spec and not spec.startswith("file://")
    given = {"spec": spec, "root": how.root, "changes": list(overrides)} if read_anew else jobs.parameters(found, how.root)
    made, replaced = jobs.schedule(
        connect(), how, name or found.name, given, no_catchup=not catch_up, max_concurrency=max_concurrency, enabled=not disabled, **when
    )
    click.echo(f"schedule: {made}{', disabled' if disabled else ''}" + "".join(f"\nreplaced: {one}" for one in replaced))


@schedule.command("list")
@server
@told
def list_(connect: Callable[[], Kfp]) -> None:
    """List schedules of this pipeline."""
    for one in connect().schedules():
        cron, periodic = one.trigger.cron_schedule, one.trigger.periodic_schedule
        when = cron.cron if cron else f"every {periodic.interval_second} s"
        state = str(one.status or one.mode).lower()
        click.echo(f"{one.recurring_run_id}  {state:<8} {when:<22} {one.display_name}  {_document(one)}")


def _document(one: Any) -> str:
    """What a schedule runs, in a word: the URI, or the name of the document that it holds."""
    said = str(((one.runtime_config.parameters if one.runtime_config else None) or {}).get("spec", ""))
    try:
        return str(json.loads(said)["name"])
    except (ValueError, LookupError, TypeError):
        return said


for _name, _on, _help in (("enable", True, "Let a schedule start runs."), ("disable", False, "Let a schedule start no more runs.")):

    @schedule.command(_name, help=_help)
    @click.argument("id", metavar="ID")
    @server
    @told
    def _switch(id: str, connect: Callable[[], Kfp], on: bool = _on) -> None:
        connect().switch(id, on)
        click.echo(f"{id} is {'enabled' if on else 'disabled'}")


@schedule.command()
@click.argument("id", metavar="ID")
@server
@told
def delete(id: str, connect: Callable[[], Kfp]) -> None:
    """Delete a schedule. Runs that it started go on."""
    connect().unschedule(id)
    click.echo(f"{id} is deleted")
