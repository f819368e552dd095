"""What `learn aligner` does, from networks to the file and the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_align._align import Model
from gpu_align._cli._model import choose_spec, load_model
from gpu_align._cli._on_data import NO_MODEL, load_alike, read_loss
from gpu_align._cli._outputs import check_file
from gpu_align._cli._terminal import Display, console, facts, print_json, print_line, say
from gpu_align._errors import InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._network import Data, TaskLoss, loss_function
from gpu_align._symmetry import PermutationSpec, StateDict, tensors_of
from gpu_align.learn import (
    Aligner,
    AlignerSettings,
    ClassifierRecipe,
    Epoch,
    Training,
    TrainingFile,
    TrainingPlan,
    Zoo,
    load_zoo,
    make_zoo,
    perceptron,
    train_aligner,
)

KEPT = ".training"
"""Ending of the file beside the aligner's that the training is kept in."""


@dataclass(frozen=True)
class Networks:
    """Networks of one architecture.

    Attributes:
        states: a stack of their state dicts.
        spec: their symmetries.
        model: what is run with them; None if it is not known.
        about: where they are from.
    """

    states: dict[str, Tensor]
    spec: PermutationSpec
    model: Model | None
    about: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class AlignerRun:
    """Networks and what goes with them, as they are named on the command line."""

    paths: Sequence[Path]
    out: Path
    train: int | None
    hidden: str
    key: str | None
    model: str | None
    input_shape: Sequence[str] | None
    output: Sequence[str] | None
    spec: Path | None
    data: str | None
    loss: str
    held: float
    seed: int
    device: torch.device
    resume: bool

    @property
    def kept(self) -> Path:
        """The file that the training is kept in."""
        return self.out.with_name(self.out.name + KEPT)

    def run(
        self, plan: TrainingPlan, settings: AlignerSettings, screen: Display
    ) -> tuple[Aligner, Training]:
        """Read or make the networks, train on them, and write the aligner.

        Raises:
            InputError: something cannot be used; GpuAlignError: something cannot be written.
            KeyboardInterrupt: Ctrl-C; the training is kept.
        """
        check_file(self.out, [".safetensors"], reads=[p for p in self.paths if p.is_file()])
        plan.check()
        loss_function(read_loss(self.loss))
        if not 0 < self.held < 1:
            raise InputError(f"--held: expected a share within 0 .. 1, got {self.held:g}")
        if self.resume and not self.kept.exists():
            raise InputError(
                f"--resume: no training is kept in {self.kept}; leave it out to begin anew"
            )
        data = None if self.data is None else Data.of(self.data, seed=self.seed)
        networks = self._networks(data, screen)
        task = None if data is None else self._task(data, networks)
        screen.part("training", 0, plan.epochs)

        def told(epoch: Epoch) -> None:
            screen.part("training", epoch.number, plan.epochs)

        try:
            aligner, training = train_aligner(
                networks.states,
                networks.spec,
                task=task,
                plan=plan,
                settings=settings,
                held=self.held,
                seed=self.seed,
                device=self.device,
                file=TrainingFile(self.kept, resume=self.resume),
                progress=told,
                about=networks.about,
            )
        except KeyboardInterrupt:
            if self.kept.exists():
                say(
                    "to continue, run the same command with --resume: the training is kept in "
                    f"{self.kept}"
                )
            raise
        with uninterrupted():
            aligner.save(self.out)
            self.kept.unlink(missing_ok=True)
        return aligner, training

    def tell(self, done: tuple[Aligner, Training], *, as_json: bool, quiet: bool) -> None:
        """Print what came of it."""
        aligner, training = done
        if as_json:
            print_json(
                {
                    "schema": "gpu-align/learn-aligner/1",
                    **aligner.record,
                    "parameters": sum(p.numel() for p in aligner.parameters()),
                    "seconds": training.seconds,
                    "written": str(self.out),
                }
            )
        elif not quiet:
            console().print(facts(_facts(aligner, training)))
            print_line(f"wrote aligner: {self.out}")

    def _networks(self, data: Data | None, screen: Display) -> Networks:
        if len(self.paths) > 1 or self.paths[0].is_file():
            if self.train is not None:
                raise InputError("--train trains the networks itself; name a folder for them")
            screen.stage("reading checkpoints")
            return self._of_files()
        zoo = self._zoo(self.paths[0], data, screen)
        state = {name: tensor[0] for name, tensor in zoo.states.items()}
        model = self._model(state)
        if model is None and zoo.settings["recipe"] == ClassifierRecipe.__name__:
            model = _perceptron(state)
        spec = choose_spec(self.spec, model, state)
        return Networks(zoo.states, spec, model, {"zoo": zoo.settings})

    def _of_files(self) -> Networks:
        read = load_alike(self.paths, self.key)
        model = self._model(read[0].tensors)
        spec = choose_spec(self.spec, model, read[0].tensors)
        states = [file.named_like(spec.keys).tensors for file in read]
        for path, state in zip(self.paths, states, strict=True):
            spec.validate(state, str(path))
        stack = {name: torch.stack(tensors_of(spec, name, states)) for name in spec.tensors}
        return Networks(stack, spec, model, {"files": [path.name for path in self.paths]})

    def _zoo(self, folder: Path, data: Data | None, screen: Display) -> Zoo:
        if self.train is None:
            screen.stage("reading the zoo")
            return load_zoo(folder)
        if data is None:
            raise InputError("--train: the networks are trained on --data; add it")
        examples = [data.fit.lots[0].inputs, data.fit.lots[0].targets]
        if len(data.fit.lots) > 1 or not all(isinstance(part, Tensor) for part in examples):
            raise InputError(f"--train: expected images with classes, got --data {self.data}")
        images, labels = (part for part in examples if isinstance(part, Tensor))
        return make_zoo(
            folder,
            ClassifierRecipe(self.train, _widths(self.hidden), seed=self.seed),
            images.flatten(1),
            labels,
            device=self.device,
            progress=lambda share: screen.part("training networks", round(100 * share), 100),
        )

    def _model(self, state: StateDict) -> Model | None:
        return load_model(
            *(self.model, self.input_shape, self.seed, self.output), beside=self.paths, state=state
        )

    def _task(self, data: Data, networks: Networks) -> TaskLoss:
        if networks.model is None:
            raise InputError(NO_MODEL)
        fitted = networks.model.fitted(data)
        loss = read_loss(self.loss)
        return TaskLoss(networks.model.module, fitted, loss, batch_size=64, seed=self.seed)


def _perceptron(state: StateDict) -> Model:
    """Return the model of a zoo of perceptrons."""
    layers = [tensor for tensor in state.values() if tensor.ndim == 2]
    widths = [layers[0].shape[1], *(len(layer) for layer in layers)]
    return Model(perceptron(widths), torch.zeros(2, widths[0], device="cpu"))


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise InputError(f"--hidden {text!r}: expected numbers of units such as 32,32")
    return widths


def _facts(aligner: Aligner, training: Training) -> dict[str, str]:
    record: dict[str, Any] = aligner.record
    best = training.best
    return {
        "aligner": repr(aligner),
        "epochs": f"{len(training.epochs)}, the best is {best.number}",
        "loss": f"{training.epochs[0].loss:.4f} at first, {training.epochs[-1].loss:.4f} at last",
        "held back": f"{record['held']} networks: {-(best.held or 0):.4f} lost, of the distance "
        + ("alone" if record["losses"]["path"] == 0 else "and halfway"),
        "seconds": f"{training.seconds:.0f} of the processor",
    }
