"""What `barrier` does, from two checkpoints to the files and the text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from gpu_align._align import Settings
from gpu_align._checkpoint import load_checkpoint
from gpu_align._cli._model import load_model, read_spec
from gpu_align._cli._on_data import read_loss
from gpu_align._cli._outputs import check_file
from gpu_align._cli._terminal import (
    Display,
    columns,
    console,
    facts,
    number,
    print_json,
    print_line,
    print_written,
    warn,
)
from gpu_align._errors import InputError
from gpu_align._merge import BarrierResult, Judge, Trio, aligned, measure_barrier
from gpu_align._network import Data


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Two checkpoints and what goes with them, as they are named on the command line."""

    networks: tuple[Path, Path]
    keys: tuple[str | None, str | None]
    data: str
    loss: str
    points: int
    plane: int | None
    statistics: int
    spec: Path | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    json_file: Path | None
    report: Path | None

    def measure(self, settings: Settings, screen: Display) -> tuple[BarrierResult, dict[str, str]]:
        """Align, measure, and write the outputs.

        Returns:
            The result, and option -> path of what was written.

        Raises:
            InputError: something cannot be used.
        """
        screen.stage("reading checkpoints")
        pairs = zip(self.networks, self.keys, strict=True)
        a, b = (load_checkpoint(path, key=key) for path, key in pairs)
        self._check_outputs([*a.files, *b.files])
        screen.stage("reading the data")
        loss = read_loss(self.loss)
        data = Data.of(self.data, seed=settings.seed)
        screen.stage("finding symmetries")
        model = load_model(
            *(self.model, self.input_shape, settings.seed, self.output),
            beside=list(self.networks),
            state=a.tensors,
        )
        if model is None:
            raise InputError(
                "a barrier is measured by running the networks, and a checkpoint does not say how; "
                "add --model and --input-shape"
            )
        judge = Judge.of(
            *(model, data, loss),
            device=settings.engine.device,
            statistics=self.statistics,
        )
        spec = read_spec(self.spec, model)
        settings = replace(settings, progress=screen.search)
        found = aligned(a.tensors, b.tensors, model, settings, spec)
        result = measure_barrier(
            *(Trio.of(a.tensors, b.tensors, model, found), judge),
            points=self.points,
            plane=self.plane,
            seed=settings.seed,
            progress=screen.part,
        )
        screen.stage("writing")
        return result, self._write(result)

    def tell(
        self, result: BarrierResult, written: dict[str, str], *, as_json: bool, quiet: bool
    ) -> None:
        """Print what came of it."""
        for finding in result.findings if quiet or as_json else ():
            warn(finding)
        if as_json:
            names = dict(zip(("a", "b"), map(str, self.networks), strict=True))
            print_json({**result.to_json(), **names, "written": written})
        elif not quiet:
            _print_summary(result, *self.networks)
            print_written(written, "--json-file or --report")

    def _check_outputs(self, reads: Sequence[Path]) -> None:
        reads = [*reads, *(path for path in (self.spec, Path(self.data)) if path is not None)]
        if self.json_file is not None:
            check_file(self.json_file, [".json"], reads=reads)
        if self.report is not None:
            check_file(self.report, [".html", ".htm"], reads=reads)

    def _write(self, result: BarrierResult) -> dict[str, str]:
        written = {}
        if self.json_file is not None:
            result.save_json(self.json_file)
            written["json_file"] = str(self.json_file)
        if self.report is not None:
            first, second = self.networks
            result.write_report(self.report, title=f"Barrier of {first.name} and {second.name}")
            written["report"] = str(self.report)
        return written


def _print_summary(result: BarrierResult, first: Path, second: Path) -> None:
    print_line()
    print_line(f"{first} <-> {second}")
    part = {"test": "test", "held": "held-back"}[result.part]
    about = {"measured on": f"{result.examples} {part} examples, loss {result.loss}"}
    if result.has_norms:
        about["statistics"] = f"re-estimated on {result.statistics_examples} training examples"
    if result.distance is not None and result.distance_before is not None:
        change = f"{number(result.distance_before)} -> {number(result.distance)}"
        about["distance"] = f"{change}  ({result.metric})"
    about["found by"] = result.search
    console().print(facts(about))
    console().print(_table(result))
    print_line("midpoint: the plain average of both networks")
    for sentence in (*result.findings, *result.notes):
        print_line(sentence)


def _table(result: BarrierResult) -> Table:
    rows = result.rows()
    titles = ["barrier", "± s.e.", "midpoint loss"]
    has_classes = rows[0]["accuracy"] is not None
    titles += ["accuracy", "ECE"] if has_classes else []
    table = columns("network", *titles, numbers=titles)
    for row in rows:
        error = "" if row["error"] is None else f"{row['error']:.2g}"
        cells = [row["network"], f"{row['barrier']:.4g}", error, f"{row['loss']:.4g}"]
        if has_classes:
            cells += [f"{100 * row['accuracy']:.2f} %", f"{row['ece']:.3f}"]
        table.add_row(*cells)
    return table
