"""What `zoo align` does, from the options to the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gpu_align._align import Model, Settings, state_of
from gpu_align._cli._model import load_model, read_spec
from gpu_align._cli._outputs import check_file
from gpu_align._cli._searches import make_search
from gpu_align._cli._terminal import (
    Display,
    columns,
    console,
    display,
    duration,
    facts,
    number,
    print_json,
    print_line,
    stdout_to_stderr,
    warn,
)
from gpu_align._errors import InputError
from gpu_align._symmetry import StateDict
from gpu_align._zoo import (
    PLAN,
    Frame,
    Job,
    ZooAlignment,
    ZooProgress,
    ZooSettings,
    called_targets,
    make_engine,
)

UNCHECKED = (
    "functions were not compared, because no model was given: the names were read as a plain chain "
    "of layers. Pass --model and --input-shape to be sure"
)


@dataclass(frozen=True)
class MakeModel:
    """Makes the model that was named, in whichever process it is called."""

    reference: str
    shapes: tuple[str, ...]
    seed: int
    outputs: tuple[str, ...]

    def __call__(self) -> Model | None:
        """Return the model."""
        return load_model(self.reference, self.shapes, self.seed, self.outputs)


@dataclass(frozen=True, kw_only=True)
class Aligning:
    """A zoo and what goes with it, as it is named on the command line."""

    source: str
    out: Path
    target: Sequence[str]
    layout: str
    report: Path | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    spec: Sequence[Path]
    runs: bool
    checkpoint: str
    stacked: bool | None
    sample: int
    search: str
    metric: str
    seed: int
    device: str
    engine: str
    address: str | None
    workers: int | None
    shard: int | None
    resume: bool

    def run(self, *, quiet: bool) -> ZooAlignment:
        """Do the work.

        Raises:
            InputError: something cannot be used; GpuAlignError: the output cannot be written.
            KeyboardInterrupt: Ctrl-C; what is done is kept for --resume.
        """
        if self.report is not None:
            check_file(self.report, [".html", ".htm"], reads=[])
        search = make_search(self.search, None, None)
        checked = Settings.of(search, self.metric, self.device, self.seed, None, None)
        settings = ZooSettings(
            search=checked.search,
            metric=self.metric,
            device=self.device,
            seed=self.seed,
            layout=self.layout,  # type: ignore[arg-type]  # checked there
            checkpoint=self.checkpoint,
            sample=self.sample,
            shard=self.shard,
            stacked=self.stacked,
            runs=self.runs,
        )
        engine = make_engine(self.engine, self.address, self.workers, self.device)
        with display(quiet=quiet) as screen, stdout_to_stderr():
            targets = self._targets()
            specs = [read_spec(path, None) for path in self.spec]
            job = Job(
                source=self.source,
                out=self.out,
                targets=targets,
                called={"source": self.source, "target": called_targets(targets, self.target)},
                specs=[spec for spec in specs if spec is not None],
                make_model=self._make_model(),
                settings=settings,
                engine=engine,
                about={"engine": self.engine, "workers": self.workers},
                resume=self.resume,
                progress=told(screen),
            )
            found = self._done(job)
            if self.report is not None:
                found.write_report(self.report)
        return found

    def _done(self, job: Job) -> ZooAlignment:
        try:
            return job.run()
        except KeyboardInterrupt:
            if (self.out / PLAN).exists():
                warn(f"what is done is kept in {self.out}; --resume goes on with it")
            raise

    def _make_model(self) -> MakeModel | None:
        if self.model is None:
            if self.input_shape or self.output:
                raise InputError("--input-shape and --output are of no use without --model; add it")
            return None
        shapes, outputs = tuple(self.input_shape or ()), tuple(self.output or ())
        return MakeModel(self.model, shapes, self.seed, outputs)

    def _targets(self) -> Sequence[StateDict] | Frame:
        if len(self.target) == 1 and self.target[0] in get_args(Frame):
            return self.target[0]  # type: ignore[return-value]
        return [state_of(path) for path in self.target]

    def tell(self, found: ZooAlignment, *, as_json: bool, quiet: bool) -> None:
        """Print what came of it."""
        failed = sum(found.failed.values())
        if failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.failed.items()))
            warn(f"{failed} of {len(found)} models could not be aligned ({kinds}); see the index")
            for kind, [(name, reason), *_] in sorted(found.data["examples"].items()):
                warn(f"{kind}, for example: {name}: {reason}")
        if self.model is None and not self.spec:
            warn(UNCHECKED)
        written: dict[str, Any] = {"out": str(self.out), "index": str(found.index)}
        if self.report is not None:
            written["report"] = str(self.report)
        if as_json:
            print_json({**found.data, "written": written})
        elif not quiet:
            print_zoo(found)
            print_line(f"wrote aligned zoo: {self.out}")
            if self.report is not None:
                print_line(f"wrote report: {self.report}")


def told(screen: Display) -> Any:
    """Return what shows the progress of the work on the terminal."""

    def tell(progress: ZooProgress) -> None:
        failed = f", {progress.failed} failed" if progress.failed else ""
        screen.part(f"{progress.stage}{failed}", progress.done, progress.total)

    return tell


def print_zoo(found: ZooAlignment) -> None:
    """Print the families of an aligned zoo."""
    numbers = ["models", "aligned", "before", "after", "bound"]
    table = columns("family", *numbers, "function", numbers=numbers)
    for name, family in found.data["families"].items():
        worst = family["largest_function_difference"]
        distances = ("mean_distance_before", "mean_distance", "mean_lower_bound")
        table.add_row(
            name,
            str(family["models"]),
            str(family["aligned"]),
            *("" if family[n] is None else number(family[n]) for n in distances),
            "not compared" if worst is None else f"differs by at most {worst:.1e}",
        )
    print_line("mean squared distance to the target, by family:")
    console().print(table)
    data = found.data
    rows = {"aligned": f"{found.aligned} of {len(found)} models"}
    if data["models_now"]:
        speed = f"{number(data['models_per_second'])} models per second"
        rows["time"] = f"{duration(data['seconds'])}, {speed}, seed {data['settings']['seed']}"
    console().print(facts(rows))
