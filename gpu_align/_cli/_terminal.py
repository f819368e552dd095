"""What is written to the terminal: consoles, tables, numbers and the progress of a search."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpu_align._cli._log import note

if TYPE_CHECKING:
    from gpu_align._search import Progress as SearchProgress

_OUTPUTS = {
    "out": "aligned checkpoint",
    "permutation": "permutation",
    "json_file": "result",
    "report": "report",
    "spec": "spec",
}


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: names and paths may hold markup's brackets."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def print_line(text: str = "") -> None:
    """Print a line that is never broken, so that paths and commands can be copied."""
    console().print(text, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one document of `--json`."""
    typer.echo(json.dumps(document, indent=1))


def print_written(written: Mapping[str, str], options: str) -> None:
    """Print the paths of what was written, or the options that would have written something."""
    for name, path in written.items():
        print_line(f"wrote {_OUTPUTS[name]}: {path}")
    if not written:
        print_line(f"nothing was written; to keep the result, add {options}")


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what a model's own code prints: stdout is for the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


def say(message: str) -> None:
    """Print a line on stderr, and note it; a stderr that is full or closed stops nothing."""
    note(message)
    with suppress(OSError):
        typer.echo(message, err=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {message}")


def facts(rows: Mapping[str, str]) -> Table:
    """Return a table of names and values without a frame."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def columns(*titles: str, numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """Return an empty table; the columns named in `numbers` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in titles:
        if name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def number(value: float) -> str:
    """Format a distance."""
    return f"{value:.6g}"


def duration(seconds: float) -> str:
    """Format a time: 0.5 s, 12 s, 3:05 min, 1:02:03 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"


class Display:
    """The line on a terminal's stderr that says what is being done; elsewhere it is silent."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, detail="")

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        note(text)
        self._progress.update(self._task, description=text, total=None, detail="")

    def examples(self, done: int, total: int) -> None:
        """Show on how many examples the networks have been run."""
        self._progress.update(
            self._task,
            description="running both networks",
            total=total,
            completed=done,
            detail=f"{done} of {total} examples",
        )

    def part(self, text: str, done: int, total: int | None) -> None:
        """Say what is being done now, and how much of it is done."""
        if done == 0:
            note(text)
        detail = "" if total is None else f"{done}/{total}"
        self._progress.update(
            self._task, description=text, total=total, completed=done, detail=detail
        )

    def search(self, step: "SearchProgress") -> None:
        """Show a step of a search, or what has been done of the next one."""
        if not step.part:
            note(f"{step.stage}: step {step.step}, {_found(step)}")
        total = f"/{step.steps}" if step.steps else ""
        part = f" ({step.part})" if step.part else ""
        left = "" if step.seconds_left is None else f", {duration(step.seconds_left)} left"
        self._progress.update(
            self._task,
            description=step.stage,
            total=step.steps,
            completed=step.step,
            detail=f"sweep {step.step}{total}{part}, {_found(step)}{left}",
        )


def _found(step: "SearchProgress") -> str:
    """Say what a search has come to."""
    loss = "" if step.loss is None else f"loss {number(step.loss)}, "
    return f"{loss}distance {number(step.best_distance)}"


@contextmanager
def display(*, quiet: bool) -> Iterator[Display]:
    """Show a progress line while the body runs; it vanishes afterwards."""
    screen = console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=quiet or not screen.is_terminal,
    )
    with progress:
        yield Display(progress)
