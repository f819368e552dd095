"""What `align` does, from two checkpoints to the files and the text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from gpu_align._align import AlignmentResult, Model, Settings, align_networks
from gpu_align._checkpoint import Checkpoint, load_checkpoint
from gpu_align._cli._failure import Failure
from gpu_align._cli._keeping import keeping, tell_how_to_continue, write_and_discard
from gpu_align._cli._model import load_model, read_spec
from gpu_align._cli._on_data import NO_MODEL
from gpu_align._cli._outputs import Outputs, check_preserved
from gpu_align._cli._searches import make_search
from gpu_align._cli._summary import print_summary
from gpu_align._cli._terminal import Display, print_json, print_written, warn
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._network import Data, TaskLoss
from gpu_align._problem import AlignmentProblem, Metric
from gpu_align._search import Search, SearchStore
from gpu_align._status import Status

UNCHECKED = (
    "the function was not checked, because no model was given: the names were read as a plain "
    "chain of layers. If the model has skip connections or grouped layers, the result computes "
    "another function; pass --model and --input-shape to be sure"
)


@dataclass(frozen=True)
class Done:
    """What came of a pair.

    Attributes:
        result: what was found.
        written: option -> path of what was written.
        failure: why something could not be written.
        warnings: what is to be known of it.
    """

    result: AlignmentResult
    written: dict[str, str]
    failure: GpuAlignError | None
    warnings: list[str]


@dataclass(frozen=True)
class Pair:
    """Two checkpoints and what goes with them, as they are named on the command line.

    `keys` lead to the tensors of the source and of the target in their files; `following` is the
    name of a search that follows the loss on data, and these; `aligner` is where it begins.
    """

    source: Path
    target: Path
    keys: tuple[str | None, str | None]
    spec: Path | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    outputs: Outputs
    store: SearchStore | None
    following: tuple[str, Data] | None = None
    aligner: str | None = None

    def align(self, settings: Settings, screen: Display) -> Done:
        """Read the checkpoints, align them and write the outputs.

        Raises:
            InputError: something cannot be used; GpuAlignError: the function has changed.
        """
        screen.stage("reading checkpoints")
        source, target = (
            load_checkpoint(path, key=key)
            for path, key in zip((self.source, self.target), self.keys, strict=True)
        )
        self.outputs.check(source, target, self.spec)
        digests = self.outputs.digests(source)
        screen.stage("finding symmetries")
        beside = [self.target, self.source] if self.spec is None else []
        model = load_model(
            *(self.model, self.input_shape, settings.seed, self.output),
            beside=beside,
            state=target.tensors,
        )
        spec = read_spec(self.spec, model)
        settings = replace(settings, progress=screen.search)
        if self.following is not None:
            search = _following(*self.following, model, settings.seed, self.aligner)
            settings = replace(settings, search=search)
        with keeping(self.store):
            [outcome] = align_networks(
                *([source.tensors], target.tensors, settings),
                spec=spec,
                model=model,
                throw=True,
                store=self.store,
            )
            result = outcome.unwrap()
            check_preserved(result.comparison, "reordered")
            if self.outputs.report is not None and result.status is not Status.INTERRUPTED:
                screen.stage("widening the beam for the report")
                result = _with_beam_widths(result, source, target, settings.metric)
            screen.stage("writing")
            title = f"{self.source.name} to {self.target.name}"
            written, failure = write_and_discard(
                *(self.outputs, result, source, title, self.store, digests)
            )
        warnings = list(source.warnings) if "out" in written else []
        if model is None and spec is None:
            warnings.append(UNCHECKED)
        return Done(result, written, failure, warnings)

    def tell(self, done: Done, *, as_json: bool, quiet: bool) -> None:
        """Print what came of it.

        Raises:
            Exit: it was interrupted, or an output could not be written.
        """
        result, interrupted = done.result, done.result.status is Status.INTERRUPTED
        failure = None if done.failure is None else Failure.of(done.failure)
        for warning in done.warnings:
            warn(warning)
        if as_json:
            names = {"source": str(self.source), "target": str(self.target)}
            about = {"written": done.written, "warnings": done.warnings}
            failed = {} if failure is None else failure.document()
            print_json({**result.to_json(), **names, **about, **failed})
        elif not quiet:
            print_summary(result, self.source, self.target)
            if done.written or self.outputs.state is None:
                print_written(done.written, "-o, --permutation or --json-file")
        if failure is not None or interrupted:
            tell_how_to_continue(self.store, None if "out" in done.written else self.outputs.out)
        if failure is not None:
            raise failure.tell(as_json=False)
        if interrupted:
            raise typer.Exit(1)


def _following(
    name: str, data: Data, model: Model | None, seed: int, aligner: str | None
) -> Search | None:
    """Return a search that follows the loss on data.

    Raises:
        InputError: there is no model that can be run on them, or they do not fit it.
    """
    if model is None:
        raise InputError(NO_MODEL)
    loss = TaskLoss(model.module, model.fitted(data), seed=seed)
    return make_search(name, None, None, loss, aligner)


def _with_beam_widths(
    result: AlignmentResult, source: Checkpoint, target: Checkpoint, metric: Metric
) -> AlignmentResult:
    """Return the result with the study of beam widths that the report draws."""
    # Figures are slow to import, and nothing else needs them.
    from gpu_align._report import beam_width_study

    spec = result.permutation.spec
    a, b = (file.named_like(spec.keys).tensors for file in (source, target))
    problem = AlignmentProblem(a, b, spec, metric=metric)
    rows = beam_width_study(problem, seed=result.seed)
    return replace(result, studies={**result.studies, "beam_width": rows})
