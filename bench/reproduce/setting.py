"""What the reproductions share: training, scores, means set right on data, loss along a segment."""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_align import Annealing, CoordinateDescent, Search, load_checkpoint, save_checkpoint
from gpu_align._device import choose_engine
from gpu_align._merge._average import average
from gpu_align._merge._calibration import METHODS, Calibration
from gpu_align._network import Data, Examples, Score, Traces, evaluate, evaluate_many

MNIST = "GPU_ALIGN_MNIST"
"""Environment variable: a folder with the four files of MNIST."""

MEASURED = 2000
"""Training images that means are set right on."""

WIDE = 256
"""Units of a layer from which descent is taken for annealing, as `merge` does."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """A model and its data.

    Attributes:
        module: of the architecture; it is run with the tensors of others.
        data: with test data, which are only reported on.
        device: where networks are run.
    """

    module: nn.Module
    data: Data
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module, data: Data, shape: Sequence[int], device: str) -> "Setting":
        """Fit images to a model that takes batches of `shape`."""
        assert data.test is not None, "the data have no test part"
        return cls(module, data.fitted(shape[1:]), choose_engine(device).device)

    @property
    def training(self) -> Data:
        """The data without the test part: all that may be chosen and fitted on."""
        return Data(self.data.fit, self.data.held)

    def test(self, states: Sequence[State]) -> list[Score]:
        """Return scores on the test data."""
        assert self.data.test is not None
        return evaluate_many(self.module, states, self.data.test, device=self.device)

    def held(self, states: Sequence[State]) -> list[Score]:
        """Return scores on the training data that are held back for choices."""
        return evaluate_many(self.module, states, self.data.held.take(MEASURED), device=self.device)

    def mean(
        self, parents: Sequence[State], method: str = "", shares: Sequence[float] | None = None
    ) -> State:
        """Return the mean of aligned networks, set right by a method of `merge`; "" leaves it."""
        if not method:
            return average(parents, shares)
        weights = [1 / len(parents)] * len(parents) if shares is None else shares
        [found] = self._calibration.merged(parents, weights, [METHODS[method]])
        return found

    def losses(self, parents: Sequence[State], method: str, points: int) -> list[float]:
        """Return test losses at equal steps from one network to another, both ends as they are."""
        between = [number / (points - 1) for number in range(1, points - 1)]
        inner = [self.mean(parents, method, [1 - t, t]) for t in between]
        return [score.loss for score in self.test([parents[0], *inner, parents[1]])]

    @cached_property
    def _calibration(self) -> Calibration:
        traces = Traces(self.module, None, self.device)
        return Calibration(traces, self.data.fit.take(MEASURED))


def barrier(losses: Sequence[float]) -> float:
    """Return by how much losses at equal steps exceed the line between the ends at most.

    Source: Entezari et al., The role of permutation invariance (ICLR 2022), definition 2.1.
    """
    last = len(losses) - 1
    line = (losses[0] + (losses[-1] - losses[0]) * n / last for n in range(last + 1))
    return max(loss - height for loss, height in zip(losses, line, strict=True))


def training_run(
    make: Callable[[], nn.Module],
    examples: Examples,
    epochs: int,
    seed: int,
    device: torch.device,
    batch: int = 256,
) -> Iterator[State]:
    """Train by Adam with a rate of 1e-3, and yield what there is after each epoch."""
    images, labels = (each.to(device) for each in _arrays(examples))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make().to(device).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(device)
        for some in order.split(batch):
            if len(some) > 1:  # of one image batch norms have no deviation
                optimizer.zero_grad()
                F.cross_entropy(model(images[some]), labels[some]).backward()
                optimizer.step()
        yield {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(path: Path | None, run: Callable[[], Iterator[State]]) -> State:
    """Return what a training run ends with, or a file of an earlier run; without a path none."""
    if path is not None and path.exists():
        return dict(load_checkpoint(path).tensors)
    *_, last = run()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, last)
    return last


def _arrays(examples: Examples) -> tuple[Tensor, Tensor]:
    [lot] = examples.lots
    assert lot.targets is not None
    return lot.inputs, lot.targets


class Ensemble(nn.Module):
    """The logarithm of the mean of what networks hold for probable."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.stack([F.log_softmax(part(x), -1) for part in self.parts])
        return each.logsumexp(0) - torch.log(torch.tensor(float(len(self.parts))))


def ensemble(setting: Setting, make: Callable[[], nn.Module], states: Sequence[State]) -> Score:
    """Return the test score of networks that are asked all together."""
    modules = [make() for _ in states]
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(dict(state))
    together = Ensemble(modules)
    assert setting.data.test is not None
    return evaluate(together, together.state_dict(), setting.data.test, device=setting.device)


def default_search(widest: int) -> Search:
    """Return the search that `merge` takes for two networks."""
    return Annealing() if widest <= WIDE else CoordinateDescent()


class CpuSeconds:
    """Processor time of this process within a `with` block, of all threads."""

    def __enter__(self) -> "CpuSeconds":
        self._started = time.process_time()
        self.spent = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = time.process_time() - self._started


def numbers(score: Score) -> dict[str, float | None]:
    """Return what a row has of a score."""
    return {"loss": score.loss, "accuracy": score.accuracy, "ece": score.ece}


def target(what: str, found: float, limit: float) -> dict:
    """Return a row that says whether a figure is at most its limit."""
    return {"target": what, "found": found, "at most": limit, "met": bool(found <= limit)}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that all reproductions have."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--small", action="store_true", help="digits, minutes on two cores")
    options.add_argument("--mnist", default=os.environ.get(MNIST), help=f"folder; default ${MNIST}")
    options.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options.add_argument("--record", action="store_true", help="write bench/results")
    return options


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table; the columns are all keys whose values fit a line."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    flat = [c for c in columns if not any(isinstance(row.get(c), list | dict) for row in rows)]
    table = Table(*flat, title=title)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in flat))
    Console(width=150).print(table)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)
