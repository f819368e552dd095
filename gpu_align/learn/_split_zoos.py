"""Zoos in three parts: to train on, to choose by, and only to report on."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network import Data, Examples
from gpu_align.learn._recipes import Recipe
from gpu_align.learn._supervised import Parts
from gpu_align.learn._zoos import Zoo, make_zoo

PARTS = ("train", "held", "test")
SEEDS_APART = 1_000_000
"""Between the seeds of parts, so that no two networks of a study begin alike."""


@dataclass(frozen=True)
class Source:
    """What the networks of a part are made of: a recipe and the examples that it takes."""

    recipe: Recipe
    examples: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SplitZoo:
    """The networks of three zoos, one after another.

    Attributes:
        states: a stack of their state dicts.
        facts: what is known of each.
        parts: which networks are of which zoo.
        digest: of how they were made.
    """

    states: dict[str, Tensor]
    facts: dict[str, Tensor]
    parts: Parts
    digest: str

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(next(iter(self.states.values())))


def make_split_zoo(
    folder: str | os.PathLike[str],
    sources: Mapping[str, Source],
    *,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
) -> SplitZoo:
    """Make the zoos of three parts, each in a folder of its name, as far as they are not there.

    Args:
        folder: around them.
        sources: of each of the parts `PARTS`.
        device: where networks are trained.
        progress: told what is done, and how many per cent of it.

    Raises:
        InputError: the examples do not fit; CheckpointError: a folder holds another zoo.
    """
    for source in sources.values():  # all before the first one is made
        source.recipe.count(source.examples, source.labels)
    zoos = []
    for part, source in sources.items():
        text = f"training the networks of the part {part!r}"
        progress(text, 0, 100)

        def show(share: float, text: str = text) -> None:
            progress(text, round(100 * share), 100)

        zoos.append(
            make_zoo(
                *(Path(folder) / part, source.recipe, source.examples, source.labels),
                device=device,
                progress=show,
            )
        )
    return joined_zoos(zoos)


def joined_zoos(zoos: list[Zoo]) -> SplitZoo:
    """Return three zoos as one."""
    numbers = torch.arange(sum(map(len, zoos)), device="cpu").split(list(map(len, zoos)))
    return SplitZoo(
        {name: torch.cat([zoo.states[name] for zoo in zoos]) for name in zoos[0].states},
        {name: torch.cat([zoo.facts[name] for zoo in zoos]) for name in zoos[0].facts},
        Parts(*numbers),
        repr([zoo.settings for zoo in zoos]),
    )


def grey_images(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return images of one channel, brought to 0 .. 1 by their extremes, and their classes.

    Returns:
        Images float32 [m, height, width] and labels int64 [m].

    Raises:
        InputError: they are no such images, or have no classes.
    """
    images, labels = classes_of(examples)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3:
        raise InputError(
            "expected images of one channel, [m, 1, height, width] or [m, height, width], got "
            f"{list(images.shape)}; the networks of this study have one value at each place"
        )
    low, high = images.amin(), images.amax()
    return (images - low) / (high - low).clamp_min(1e-12), labels


def classes_of(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return inputs float32 [m, ...] and classes int64 [m].

    Raises:
        InputError: examples have several shapes, several inputs, or no classes.
    """
    lot = examples.lots[0]
    if len(examples.lots) > 1 or not isinstance(lot.inputs, Tensor):
        raise InputError("expected one tensor of inputs of one shape; give data that have it")
    if not lot.inputs.is_floating_point():
        raise InputError(f"expected inputs of floating point, got {lot.inputs.dtype}")
    if lot.targets is None or lot.targets.is_floating_point() or lot.targets.ndim != 1:
        raise InputError("expected a class for each example; give integer targets [m]")
    if len(lot.targets) and int(lot.targets.min()) < 0:
        raise InputError(f"expected classes numbered from 0, got {int(lot.targets.min())}")
    return lot.inputs.float(), lot.targets.long()


def required_test(data: Data) -> Examples:
    """Return the test part of data.

    Raises:
        InputError: there is none.
    """
    if data.test is None:
        raise InputError("expected data with a test part, as what is reported is measured on it")
    return data.test


def taken(data: Data, most: int | None) -> Data:
    """Return data with at most so many training examples, and the other parts in proportion.

    Raises:
        InputError: there is no test part.
    """
    examples = required_test(data)
    if most is None or most >= len(data.fit):
        return data
    share = most / len(data.fit)
    held, test = (max(1, round(share * len(part))) for part in (data.held, examples))
    return Data(data.fit.take(most), data.held.take(held), examples.take(test))
