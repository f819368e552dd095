"""The commands together, and the one place where errors become messages and exit codes."""

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from gpu_align._cli._align import align
from gpu_align._cli._apply import apply
from gpu_align._cli._canonicalize import canonicalize
from gpu_align._cli._demo import demo
from gpu_align._cli._env import env
from gpu_align._cli._inspect import inspect
from gpu_align._cli._report import report
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._interrupt import quitting_at_once

FAILED = 1
BAD_INPUT = 2

app = typer.Typer(
    name="gpu-align",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A traceback means a bug of ours: plain, so that it can be copied into an issue.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: errors raised on purpose become one message and an exit code.

    The message is printed as it is, for rich would take `[...]` in it for markup.
    """

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> None:
        with quitting_at_once():
            importlib.import_module("gpu_align._align")  # seconds, the first time
        try:
            with warnings.catch_warnings():
                # torch's remarks on its own future are of no use to whoever types a command.
                warnings.simplefilter("ignore", FutureWarning)
                command(*args, **kwargs)
        except GpuAlignError as error:
            typer.echo(f"error: {error}", err=True)
            code = BAD_INPUT if isinstance(error, InputError) else FAILED
            raise typer.Exit(code) from error
        except (MemoryError, RuntimeError) as error:
            if "allocate" not in str(error) and not isinstance(error, MemoryError):
                raise
            typer.echo(
                f"error: not enough memory: {str(error).splitlines()[0]}; ask for fewer --starts, "
                "a smaller --width or a smaller --input-shape",
                err=True,
            )
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(FAILED) from error

    return wrapped


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"gpu-align {importlib.metadata.version('gpu-align')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Align neural networks modulo permutation symmetry, with a certificate for every answer.

    Exit codes: 0 done, 1 failed or interrupted, 2 bad input.
    """


for _command in (align, inspect, apply, canonicalize, report, demo, env):
    app.command()(reported(_command))
