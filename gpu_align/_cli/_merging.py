"""What `merge` does, from checkpoints to the files and the text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from gpu_align._align import Settings
from gpu_align._checkpoint import Checkpoint, save_checkpoint
from gpu_align._cli._keeping import keeping, make_stage_store
from gpu_align._cli._model import load_model, read_spec
from gpu_align._cli._on_data import NO_MODEL, load_alike, read_data, read_loss
from gpu_align._cli._outputs import Outputs, writing
from gpu_align._cli._terminal import (
    Display,
    columns,
    console,
    duration,
    facts,
    number,
    print_json,
    print_line,
    score_cells,
    score_titles,
    warn,
)
from gpu_align._errors import InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._merge import MergeResult, Task
from gpu_align._network import Score, evaluate_many

UNCHECKED = (
    "no model was given, so the names were read as a plain chain of layers. If the model has skip "
    "connections or grouped layers, units were averaged that do not belong together; pass --model "
    "and --input-shape to be sure"
)


@dataclass(frozen=True)
class Done:
    """What came of a merge.

    Attributes:
        result: what was found.
        written: option -> path of what was written.
        warnings: what is to be known of it.
        tested: the networks, then the merged one, on test data; nothing without such data.
    """

    result: MergeResult
    written: dict[str, str]
    warnings: list[str]
    tested: Sequence[Score]


@dataclass(frozen=True, kw_only=True)
class Merging:
    """Checkpoints and what goes with them, as they are named on the command line."""

    paths: Sequence[Path]
    out: Path
    json_file: Path | None
    report: Path | None
    resume: bool
    key: str | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    spec: Path | None
    data: str | None
    loss: str
    examples: int | None
    weights: Sequence[float] | None

    def run(self, method: str, settings: Settings, screen: Display) -> Done:
        """Read the checkpoints, merge them and write the outputs.

        Raises:
            InputError: something cannot be used; GpuAlignError: something cannot be written.
            KeyboardInterrupt: Ctrl-C; nothing is written.
        """
        if len(self.paths) < 2:
            raise InputError(
                f"expected two or more networks to merge, got {self.paths[0]} alone; name another "
                "one after it"
            )
        screen.stage("reading checkpoints")
        networks = load_alike(self.paths, self.key)
        self._check_outputs(networks)
        store = make_stage_store(self._outputs, resume=self.resume)
        task, warnings = self._task(networks, settings, screen)
        with keeping(store):
            result = replace(task, store=store).run(method)
            screen.stage("measuring the networks on test data")
            tested = _tested(task, result)
            screen.stage("writing")
            written = self._write(result, networks[0])
        if store is not None:
            store.discard()
        warnings = [*networks[0].warnings, *warnings, *result.notes]
        return Done(result, written, warnings, tested)

    def tell(self, done: Done, *, as_json: bool, quiet: bool) -> None:
        """Print what came of it."""
        for warning in done.warnings:
            warn(warning)
        if as_json:
            rows = zip([*self._names, "merged"], done.tested, strict=bool(done.tested))
            test = [{"network": name, **_plain(score)} for name, score in rows]
            paths = [str(path) for path in self.paths]
            about = {"networks": paths, "test": test, "warnings": done.warnings}
            print_json({**done.result.to_json(), **about, "written": done.written})
        elif not quiet:
            _print_summary(done.result, self._names)
            _print_tested(done.tested, self._names)
            print_line(f"wrote merged checkpoint: {self.out}")
            if self.json_file is not None:
                print_line(f"wrote result: {self.json_file}")
            if self.report is not None:
                print_line(f"wrote report: {self.report}")

    @property
    def _outputs(self) -> Outputs:
        return Outputs(self.out, None, self.json_file, self.report)

    @property
    def _names(self) -> list[str]:
        """The names of the networks: of their files where these differ, else the whole paths."""
        short = [path.name for path in self.paths]
        return short if len(set(short)) == len(short) else [str(path) for path in self.paths]

    def _check_outputs(self, networks: Sequence[Checkpoint]) -> None:
        """Check that outputs can be written, and overwrite none of the networks, the first too."""
        first, second, *_ = networks
        files = [file for network in networks for file in network.files]
        self._outputs.check(first, second, *files, self.spec)

    def _task(
        self, networks: Sequence[Checkpoint], settings: Settings, screen: Display
    ) -> tuple[Task, list[str]]:
        """Return what is to be done, and what is to be known of it."""
        screen.stage("finding symmetries")
        states = [network.tensors for network in networks]
        needed = self.spec is None or self.data is not None
        model = load_model(
            *(self.model, self.input_shape, settings.seed, self.output),
            beside=self.paths if needed else [],
            state=states[0],
        )
        data = None
        if self.data is not None:
            if model is None:
                raise InputError(NO_MODEL)
            screen.stage("reading data")
            data = read_data(self.data, model, settings.seed)
        task = Task(
            states,
            replace(settings, progress=screen.search),
            model,
            read_spec(self.spec, model),
            data,
            names=self._names,
            weights=self.weights,
            loss=read_loss(self.loss),
            examples=self.examples,
            tell=screen.stage,
        )
        return task, [UNCHECKED] if model is None and self.spec is None else []

    def _write(self, result: MergeResult, like: Checkpoint) -> dict[str, str]:
        """Write the outputs; Ctrl-C does not end it, for it takes a moment."""
        written = {"out": str(self.out)}
        with uninterrupted(deliver=False):
            with writing(self.out):
                save_checkpoint(self.out, result.state_dict, like=like)
            if self.json_file is not None:
                with writing(self.json_file):
                    result.save_json(self.json_file)
                written["json_file"] = str(self.json_file)
            if self.report is not None:
                with writing(self.report):
                    result.write_report(self.report, title=f"Merge of {', '.join(self._names)}")
                written["report"] = str(self.report)
        return written


def _tested(task: Task, result: MergeResult) -> list[Score]:
    """Return the scores of the networks and of the merged one on test data, which chose nothing."""
    if task.data is None or task.data.test is None or not task.data.test.have_targets:
        return []
    assert task.model is not None
    states = [task.model.in_module(state) for state in (*task.given, result.state_dict)]
    device = task.settings.engine.device
    return evaluate_many(task.model.module, states, task.data.test, task.loss, device=device)


def _plain(score: Score) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ("loss", "accuracy", "ece", "examples")}


def _print_tested(tested: Sequence[Score], names: Sequence[str]) -> None:
    if not tested:
        return
    titles = score_titles(tested[-1])
    table = columns("  network", *titles, numbers=titles)
    for name, score in zip([*names, "merged"], tested, strict=True):
        table.add_row(f"  {name}", *score_cells(score)[: len(titles)])
    print_line(f"on {tested[-1].examples} test examples, which nothing was chosen on:")
    console().print(table)


def _print_summary(result: MergeResult, names: Sequence[str]) -> None:
    """Print what was tried, and what was chosen."""
    print_line()
    print_line(f"merged {', '.join(names)}")
    console().print(merge_table(result))
    chosen = result.chosen
    moved = [sum(each.moved().values()) for each in result.permutations[1:]]
    rows = {
        "weights": ", ".join(number(weight) for weight in result.weights),
        "moved": f"{', '.join(map(str, moved))} units",
    }
    if chosen.examples:
        rows["measured on"] = f"{chosen.examples} held-back examples"
    if result.cycle_error is not None:
        rows["cycle error"] = number(result.cycle_error)
    rows["time"] = f"{duration(result.seconds)}, seed {result.seed}"
    console().print(facts(rows))


def merge_table(result: MergeResult) -> Table:
    """Return a table of what was tried; the chosen way is marked by a star."""
    chosen = result.chosen
    titles = score_titles(chosen)
    numbers = [*titles, "distance"]
    table = columns("  order of units", "set right by", *numbers, numbers=numbers)
    for trial in result.trials:
        is_chosen = trial is chosen
        table.add_row(
            f"{'*' if is_chosen else ' '} {trial.order}",
            trial.method or "not merged",
            *score_cells(trial)[: len(titles)],
            "" if trial.distance is None else number(trial.distance),
            style="bold" if is_chosen else None if trial.is_merged else "dim",
        )
    return table
