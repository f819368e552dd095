"""The commands together, and the one place where errors become messages and exit codes."""

import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gpu_align._cli._advice import advised, warnings_of
from gpu_align._cli._align import align
from gpu_align._cli._apply import apply
from gpu_align._cli._barrier import barrier
from gpu_align._cli._canonicalize import canonicalize
from gpu_align._cli._demo import demo
from gpu_align._cli._env import env
from gpu_align._cli._failure import BAD_INPUT, Failure
from gpu_align._cli._inspect import inspect
from gpu_align._cli._learn import COMMANDS as LEARN
from gpu_align._cli._log import logging_to
from gpu_align._cli._merge import merge
from gpu_align._cli._repair import repair
from gpu_align._cli._report import report
from gpu_align._cli._terminal import print_json, warn
from gpu_align._cli._zoo import COMMANDS as ZOO
from gpu_align._errors import GpuAlignError
from gpu_align._interrupt import quitting_at_once


class Commands(TyperGroup):
    """The commands; with `--json`, options that cannot be read give a document too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        ctx.obj = "--json" in args
        with _refused(ctx.obj):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse the rest and run the command."""
        with _refused(ctx.obj):
            return super().invoke(ctx)


@contextmanager
def _refused(as_json: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of what the parser prints, help or the version
        failure = Failure.of(error)
        assert failure is not None
        raise failure.tell(as_json=as_json) from error
    except Exception as error:
        if as_json and hasattr(error, "format_message"):  # an error of the parser
            message = error.format_message()
            print_json(Failure(message, type(error).__name__, BAD_INPUT).document())
        raise


app = typer.Typer(
    name="gpu-align",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A traceback means a bug of ours: plain, so that it can be copied into an issue.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: errors raised on purpose become one message and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: Any) -> None:
        with quitting_at_once():
            importlib.import_module("gpu_align._align")  # seconds, the first time
        with ExitStack() as stack:
            try:
                others = [value for name, value in kwargs.items() if name != "log"]
                stack.enter_context(logging_to(kwargs.get("log"), others))
                stack.enter_context(warnings.catch_warnings())
                # torch's remarks on its own future are of no use to whoever types a command.
                warnings.simplefilter("ignore", FutureWarning)
                for message in warnings_of(kwargs):
                    warn(message)
                command(*args, **kwargs)
                sys.stdout.flush()
            except (GpuAlignError, MemoryError, RuntimeError, OSError, KeyboardInterrupt) as error:
                known = advised(error, kwargs) if isinstance(error, GpuAlignError) else error
                failure = Failure.of(known)
                if failure is None:
                    raise
                raise failure.tell(as_json=bool(kwargs.get("as_json"))) from error

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


for _command in (align, barrier, merge, repair, inspect, apply, canonicalize, report, demo, env):
    app.command()(reported(_command))

for _name, _help, _commands in (
    ("learn", "Learn from the weights of many networks, modulo their symmetries.", LEARN),
    ("zoo", "Collections of thousands to millions of networks.", ZOO),
):
    _group = typer.Typer(name=_name, help=_help, no_args_is_help=True, rich_markup_mode="markdown")
    for _part in _commands:
        _group.command()(reported(_part))
    app.add_typer(_group)
