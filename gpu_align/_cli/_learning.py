"""What the commands of `learn` share: their options, their folder, what they print."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gpu_align._cli._options import OUTPUTS
from gpu_align._cli._terminal import (
    Display,
    columns,
    console,
    display,
    facts,
    print_json,
    print_line,
    say,
    stdout_to_stderr,
)
from gpu_align._errors import InputError

if TYPE_CHECKING:
    from gpu_align.learn import Row, Study, Work

_MANY = 3
"""Measures beside which a narrow terminal has no room for the number of parameters."""

NETWORKS = "Networks"
TRAINING = "Training"

Pictures = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        rich_help_panel=NETWORKS,
        help="Images with classes and a test part: digits, mnist:FOLDER, cifar10:FOLDER, "
        "FILE.npz (x, y, x_test, y_test), package.module:loader.",
    ),
]
Hidden = Annotated[
    str,
    typer.Option(
        metavar="N,N", rich_help_panel=NETWORKS, help="Units of the hidden layers of a network."
    ),
]
Waves = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=10,
        rich_help_panel=NETWORKS,
        help="Training waves; a fifth as many to choose by, two fifths to test.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        *("--out", "-o"),
        metavar="DIR",
        rich_help_panel=OUTPUTS,
        help="Folder for result.json, report.html and the trainings; it is made.",
    ),
]
ZooFolder = Annotated[
    Path | None,
    typer.Option(
        "--zoo",
        metavar="DIR",
        rich_help_panel=NETWORKS,
        help="Folder of the networks; what is in it is not trained again. By default DIR/zoo of "
        "--out.",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, rich_help_panel=TRAINING, help="Trainings of each model, for a spread."
    ),
]
Effort = Annotated[
    float,
    typer.Option(
        metavar="F", min=0.001, rich_help_panel=TRAINING, help="Factor of all numbers of epochs."
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=TRAINING,
        help="Go on with the trainings in --out, which were interrupted or have ended.",
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Few networks, few epochs, one seed: to see what it does."),
]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Where an experiment is kept, and how it is run."""

    title: str
    out: Path
    zoo: Path | None
    seeds: int
    resume: bool
    device: str
    as_json: bool
    quiet: bool

    def run(self, study: Callable[[Path, "Work"], "Study"]) -> None:
        """Run it, write result.json and report.html, and print the table.

        Args:
            study: makes it, given the folder of the zoo and how models are trained.

        Raises:
            InputError: a folder cannot be used.
        """
        self._check_folders()
        with display(quiet=self.quiet) as screen, stdout_to_stderr():
            try:
                found = study(self.zoo or self.out / "zoo", self._work(screen))
            except KeyboardInterrupt:
                say(
                    "to continue, run the same command with --resume: what is trained is kept in "
                    f"{self.out}"
                )
                raise
        written = self._write(found)
        if self.as_json:
            print_json({**found.to_json(), "written": written})
        elif not self.quiet:
            _print(found, self.title)
            for path in written:
                print_line(f"wrote {path}")

    @property
    def _trainings(self) -> Path:
        return self.out / "trainings"

    def _check_folders(self) -> None:
        from gpu_align._cli._outputs import check_folder

        kept = sorted(self._trainings.glob("*.pt"))
        if kept and not self.resume:
            raise InputError(
                f"{self.out} keeps trainings of an experiment; add --resume to go on with them, or "
                "name another folder by --out"
            )
        for folder in (self.out, self.zoo or self.out):
            check_folder(folder)

    def _work(self, screen: Display) -> "Work":
        from gpu_align._device import choose_engine
        from gpu_align.learn import Work

        return Work(
            seeds=tuple(range(self.seeds)),
            device=choose_engine(self.device).device,
            folder=self._trainings,
            resume=self.resume,
            progress=screen.part,
        )

    def _write(self, study: "Study") -> list[str]:
        from gpu_align._report import write_learning

        result, report = self.out / "result.json", self.out / "report.html"
        study.save_json(result)
        write_learning(study.to_json(), report, self.title)
        return [str(result), str(report)]


def widths(text: str) -> tuple[int, ...]:
    """Return the numbers of `--hidden`.

    Raises:
        InputError: they are no positive numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"--hidden {text!r}: expected the units of each hidden layer with commas between, such "
            "as 16,16"
        )
    return tuple(map(int, parts))


def _print(study: "Study", title: str) -> None:
    print_line()
    print_line(title)
    console().print(_table(study))
    if study.checks:
        console().print(facts({name: f"{value:.4g}" for name, value in study.checks.items()}))
    for sentence in study.notes:
        print_line(sentence)


def _table(study: "Study") -> Table:
    measures = [textwrap.fill(name, 14) for name in study.measures]
    sizes = ["parameters"] if len(measures) < _MANY else []
    numbers = [*measures, *sizes, "CPU s"]
    table = columns("model: what it reads", *numbers, numbers=numbers)
    table.columns[0].min_width = len("EquivariantLinear:")
    for row in study.rows:
        cells = [_cell(row, name, unit) for name, unit in study.measures.items()]
        if sizes:
            cells.append(f"{row.parameters:,}" if row.parameters else "")
        seconds = f"{row.seconds:.1f}" if row.seconds else ""
        style = "dim" if row.listed_apart else None
        name = f"{row.model}: {row.form}" if row.form else row.model
        table.add_row(name, *cells, seconds, style=style)
    return table


def _cell(row: "Row", measure: str, unit: str) -> str:
    value, spread = row.mean(measure), row.spread(measure)
    if unit == "%":
        value, spread = 100 * value, None if spread is None else 100 * spread
    text = f"{value:.1f}" if unit == "%" else f"{value:.3f}"
    if spread is not None:
        text += f" ± {spread:.1f}" if unit == "%" else f" ± {spread:.3f}"
    return f"{text} %" if unit == "%" else text
