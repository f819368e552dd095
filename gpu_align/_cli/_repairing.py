"""What `repair` does, from a checkpoint to the file and the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_align._align import Model
from gpu_align._checkpoint import Checkpoint, save_checkpoint
from gpu_align._cli._model import load_model
from gpu_align._cli._on_data import NO_MODEL, load_alike, read_data, read_loss
from gpu_align._cli._outputs import check_checkpoint, writing
from gpu_align._cli._terminal import (
    Display,
    columns,
    console,
    print_json,
    print_line,
    score_cells,
    score_titles,
    warn,
)
from gpu_align._errors import InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._merge import RepairResult, repair


@dataclass(frozen=True)
class Done:
    """What came of a repair.

    Attributes:
        result: what was found.
        warnings: what is to be known of it.
    """

    result: RepairResult
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Repairing:
    """A checkpoint and what goes with it, as they are named on the command line."""

    path: Path
    parents: Sequence[Path]
    out: Path
    key: str | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    data: str
    loss: str
    examples: int | None
    weights: Sequence[float] | None
    seed: int
    device: str

    def run(self, method: str | None, screen: Display) -> Done:
        """Read the checkpoints, repair the first and write it.

        Raises:
            InputError: something cannot be used; GpuAlignError: it cannot be written.
            KeyboardInterrupt: Ctrl-C; nothing is written.
        """
        screen.stage("reading checkpoints")
        network, *parents = load_alike([self.path, *self.parents], self.key)
        reads = [file for each in (network, *parents) for file in each.files]
        check_checkpoint(self.out, network, reads=reads)
        model = self._model(network)
        screen.stage("reading data")
        data = read_data(self.data, model, self.seed)
        screen.stage("running the networks on data")
        result = repair(
            network.tensors,
            data,
            parents=[parent.tensors for parent in parents],
            weights=self.weights,
            method=method,
            model=model,
            loss=read_loss(self.loss),
            device=self.device,
            seed=self.seed,
            examples=self.examples,
        )
        screen.stage("writing")
        with uninterrupted(deliver=False), writing(self.out):
            save_checkpoint(self.out, result.state_dict, like=network)
        return Done(result, network.warnings)

    def tell(self, done: Done, *, as_json: bool, quiet: bool) -> None:
        """Print what came of it."""
        for warning in done.warnings:
            warn(warning)
        if as_json:
            names = {"network": str(self.path), "parents": [str(path) for path in self.parents]}
            about = {"warnings": list(done.warnings), "written": {"out": str(self.out)}}
            print_json({**done.result.to_json(), **names, **about})
        elif not quiet:
            print_line()
            print_line(f"{self.path}: {done.result.method}")
            _print_scores(done.result)
            print_line(f"wrote repaired checkpoint: {self.out}")

    def _model(self, network: Checkpoint) -> Model:
        model = load_model(
            *(self.model, self.input_shape, self.seed, self.output),
            beside=[self.path, *self.parents],
            state=network.tensors,
        )
        if model is None:
            raise InputError(NO_MODEL)
        return model


def _print_scores(result: RepairResult) -> None:
    if result.before is None or result.after is None:
        print_line("the data have no targets, so nothing is known of the loss")
        return
    titles = score_titles(result.after)
    table = columns("", *titles, numbers=titles)
    for name, score in (("before", result.before), ("after", result.after)):
        table.add_row(name, *score_cells(score)[: len(titles)])
    console().print(table)
    print_line(f"measured on {result.after.examples} held-back examples")
