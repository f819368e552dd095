"""Writing aligned models like the checkpoints that they came from."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from gpu_align._align import AlignedStack
from gpu_align._checkpoint import Checkpoint, make_folder, save_checkpoint
from gpu_align._zoo._pieces import Shard
from gpu_align._zoo._read import Batch


def write_alike(
    folder: Path,
    part: AlignedStack,
    mine: Sequence[int],
    read: tuple[Sequence[int], Batch],
    shard: Shard,
) -> None:
    """Write the aligned models of a batch that were read from checkpoints.

    Args:
        folder: the root of what is written.
        part: the models.
        mine: places in the shard of the models that `part` numbers.
        read: places of all models of the batch, and these as they were read.
        shard: what the places are of.

    Raises:
        CheckpointError: a file cannot be written.
    """
    places, batch = read
    by_place = {places[member]: like for member, like in batch.checkpoints.items()}
    for row, number in enumerate(part.numbers):
        like = by_place.get(mine[number])
        if like is not None:
            moved = {name: tensors[row] for name, tensors in part.states.items()}
            _save(folder / shard.name_at(mine[number]), moved, like)


def _save(path: Path, moved: Mapping[str, Tensor], like: Checkpoint) -> None:
    make_folder(path.parent)
    tensors = {name: moved.get(name, tensor) for name, tensor in like.tensors.items()}
    if path.is_dir():
        shutil.rmtree(path)  # of a run that was ended before its shard was committed
    if like.path.is_dir() and not like.beside and like.shards is None:
        make_folder(path)
        path = path / like.files[0].name
    save_checkpoint(path, tensors, like=like)
