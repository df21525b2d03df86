"""What commands share: options, and how errors end them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from trainer.errors import CotrainError, Stopped

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
