"""Zoos: folders with many small networks of one architecture, and what is known of each."""

import dataclasses
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint import atomic_write, read_safetensors
from gpu_align._errors import CheckpointError
from gpu_align.learn._recipes import Progress, Recipe

_FORMAT, _SETTINGS = "gpu-align/zoo", "zoo.json"
_WEIGHT, _FACT = "weight:", "fact:"


@dataclass(frozen=True, eq=False)
class Zoo:
    """Networks of one architecture.

    Attributes:
        states: a stack of their state dicts, name -> [n, *shape], on the CPU.
        facts: what is known of each, name -> [n].
        settings: how they were made.
    """

    states: dict[str, Tensor]
    facts: dict[str, Tensor]
    settings: dict[str, object]

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(next(iter(self.states.values())))


def make_zoo(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    examples: Tensor,
    labels: Tensor,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Zoo:
    """Train the networks of a recipe together and keep them; return what `load_zoo` does.

    What is in the folder is not made again: an interrupted call is finished by the same call, on
    the CPU to the same bytes. Each shard depends on the recipe and its number only.

    Args:
        folder: made if it is not there; the settings go to zoo.json, networks and facts to
            safetensors files of `recipe.shard` networks.
        recipe: a `SirenRecipe` or a `ClassifierRecipe`.
        examples: the data set, as the recipe says.
        labels: int64 [m].
        device: on which to train.
        progress: called as the work goes on.

    Raises:
        InputError: the data do not fit the recipe.
        CheckpointError: the folder holds another zoo, or cannot be written.
    """
    path, count = Path(folder), recipe.count(examples, labels)
    _begin(path, recipe, count, _digest(examples, labels))
    examples = examples.to(device)
    for shard, numbers in enumerate(_shards(count, recipe.shard)):
        if _shard_path(path, shard).exists():
            continue
        done = functools.partial(_report, progress, numbers, count)
        _save(_shard_path(path, shard), *recipe.train(numbers, examples, labels, done))
    return load_zoo(path)


def load_zoo(folder: str | os.PathLike[str]) -> Zoo:
    """Read a zoo that `make_zoo` has made.

    Raises:
        CheckpointError: the folder holds no zoo, or a part of one.
    """
    path = Path(folder)
    settings = _settings(path)
    ranges = _shards(int(str(settings["count"])), int(str(settings["shard"])))
    files = [_shard_path(path, shard) for shard in range(len(ranges))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{str(path)!r} has {len(files) - len(missing)} of {len(files)} files of its zoo, "
            f"{missing[0]} is missing; finish it by the call of make_zoo that began it"
        )
    read = [read_safetensors(file) for file in files]
    joined = {name: torch.cat([part[name] for part, _ in read]) for name in read[0][0]}
    # The files are sorted by name; the order of the state dict stands beside.
    order = json.loads((read[0][1] or {})["names"])
    return Zoo(
        {name: joined[_WEIGHT + name] for name in order[_WEIGHT]},
        {name: joined[_FACT + name] for name in order[_FACT]},
        settings,
    )


def _begin(folder: Path, recipe: Recipe, count: int, data: str) -> None:
    """Write the settings of a new zoo, or check those of one that was begun."""
    fields = dataclasses.asdict(recipe)
    settings = {"format": _FORMAT, "recipe": type(recipe).__name__, **fields}
    text = json.dumps({**settings, "count": count, "data": data}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise CheckpointError(f"cannot make the folder {str(folder)!r}: {failure}") from failure
    if (folder / _SETTINGS).exists():
        _check_same(folder, _settings(folder), json.loads(text))
    else:
        with atomic_write(folder / _SETTINGS, CheckpointError) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _report(progress: Progress | None, numbers: range, count: int, share: float) -> None:
    """Say which share of a zoo is done when a share of one shard is."""
    if progress is not None:
        progress((numbers.start + share * len(numbers)) / count)


def _shards(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _save(path: Path, states: dict[str, Tensor], facts: dict[str, Tensor]) -> None:
    named = {_WEIGHT + name: tensor for name, tensor in states.items()}
    named |= {_FACT + name: tensor for name, tensor in facts.items()}
    # One entry only: safetensors writes several in any order.
    order = {"names": json.dumps({_WEIGHT: list(states), _FACT: list(facts)})}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in named.items()}
    with atomic_write(path, CheckpointError) as temporary:
        save_file(tensors, temporary, order)


def _settings(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise CheckpointError(
            f"{str(folder)!r} holds no zoo: {failure}; expected a folder made by make_zoo"
        ) from failure
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(
            f"{str(folder / _SETTINGS)!r} is of something else; expected a folder made by make_zoo"
        )
    return found


def _check_same(folder: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    unlike = sorted(n for n in {**found, **wanted} if found.get(n) != wanted.get(n))
    if unlike:
        raise CheckpointError(
            f"{str(folder)!r} holds a zoo made otherwise: {', '.join(unlike)} differ; name another "
            "folder, or load_zoo this one"
        )


def _digest(examples: Tensor, labels: Tensor) -> str:
    """Return a hash of a data set."""
    found = hashlib.sha256()
    for tensor in (examples, labels):
        found.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
