"""What models are aligned to where no network is named: one of a sample, or the sample's mean."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gpu_align._align import Settings, align_stack, barycentre
from gpu_align._errors import InputError
from gpu_align._problem import unusable_of_stack
from gpu_align._search import CoordinateDescent
from gpu_align._symmetry import PermutationSpec, Stack
from gpu_align._zoo._pieces import Piece
from gpu_align._zoo._read import read_batch
from gpu_align._zoo._settings import Frame

_CANDIDATES = 16
"""Networks of a sample that may be its medoid."""
_SAMPLE_BYTES = 2**28

Part = tuple[Piece, int, int]


def draw_sample(parts: Sequence[Part], spec: PermutationSpec, most: int, seed: int) -> Stack:
    """Read models drawn from all, without those that cannot be used.

    Args:
        parts: pieces with their models.
        spec: their symmetries.
        most: how many.
        seed: of the draw.

    Raises:
        InputError: none of them can be used.
    """
    ends = torch.tensor([stop - start for _, start, stop in parts], device="cpu").cumsum(0)
    total = int(ends[-1])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(total, generator=generator, device="cpu")[:most].sort().values
    chosen = []
    places = torch.searchsorted(ends, drawn, right=True).tolist()
    for number, at in zip(drawn.tolist(), places, strict=True):
        piece, start, stop = parts[at]
        row = number - (int(ends[at]) - (stop - start)) + start
        chosen.append((piece, row, row + 1))
    stack = read_batch(chosen, spec).stack
    bad = unusable_of_stack(spec, stack)
    usable = [n for n in range(len(stack)) if n not in bad]
    if not usable:
        raise InputError(
            f"none of {len(chosen)} models that were drawn to make a target of can be used; name "
            "a network to align to"
        )
    return stack.select(usable)


def sample_size(wanted: int, state: Mapping[str, Tensor]) -> int:
    """Return how many models a sample has, so that it fits the memory of a batch."""
    return max(min(wanted, _SAMPLE_BYTES // max(sum(t.nbytes for t in state.values()), 1)), 2)


def make_frame(
    frame: Frame, sample: Stack, spec: PermutationSpec, settings: Settings
) -> dict[str, Tensor]:
    """Return what the models of a family are aligned to.

    Args:
        frame: "medoid" for the network of the sample that is closest to the others on average, each
            aligned to it; "barycentre" for the mean of the sample in its own frame.
        sample: models of the family.
        spec: their symmetries.
        settings: the search is weight matching, whatever theirs is.
    """
    if len(sample) == 1:
        return {name: tensor[0].clone() for name, tensor in sample.tensors.items()}
    if frame == "barycentre":
        found = barycentre(
            list(sample), spec, method="batch", device=settings.engine.device, seed=settings.seed
        )
        return dict(found.mean)
    settings = replace(settings, search=CoordinateDescent())
    best: tuple[float, int] | None = None
    for number in range(min(len(sample), _CANDIDATES)):
        aligned = align_stack(sample, sample[number], spec, settings)
        total = sum(float(part.table.distance.sum()) for part in aligned)
        if best is None or total < best[0]:
            best = total, number
    assert best is not None
    return {name: tensor.clone() for name, tensor in sample[best[1]].items()}
