"""`cotrain new KIND`: a commented document to start from."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.options import told

_TEMPLATES = Path(__file__).parents[1] / "trainer" / "templates" / "kinds"


def kinds() -> list[str]:
    """Kinds of joint training that there is a document for."""
    return sorted(file.stem for file in _TEMPLATES.glob("*.yaml"))


@click.command()
@click.argument("kind", metavar="KIND")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Where to write it. Default: KIND.yaml; '-': print it."
)
@told
def new(kind: str, output: Path | None) -> None:
    """Write a commented document of a KIND of joint training, on real data, to start from."""
    from trainer.errors import SpecError, one_of

    if kind not in kinds():
        raise SpecError.at("KIND", f"no kind of joint training is called '{kind}'", one_of(kind, kinds()))
    text = (_TEMPLATES / f"{kind}.yaml").read_text()
    if str(output) == "-":
        click.echo(text, nl=False)
        return
    file = output or Path(f"{kind}.yaml")
    try:
        with file.open("x") as made:
            made.write(text)
    except FileExistsError:
        raise SpecError.at(str(file), "is there already", "give another name with --output, or '-' to print it") from None
    except OSError as error:
        raise SpecError.at(
            str(file), f"can't be written: {(error.strerror or str(error)).lower()}", "give another name with --output"
        ) from None
    click.echo(f"{file}: written; `cotrain check {file}`, then `cotrain run {file}`. See docs/kinds/{kind}.md")
