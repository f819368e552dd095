"""Forms of the weights of many networks: as they are, and in one frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_align._align import AlignmentResult, align, barycentre
from gpu_align._search import CoordinateDescent, Progress
from gpu_align._status import Status
from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Features
from gpu_align.learn._elements import Elements
from gpu_align.learn._readers import in_a_row
from gpu_align.learn._space import WeightSpace

Stack = dict[str, Tensor]

MOST = 2000
"""Networks whose barycentre is sought; a mean of so many hardly moves with more."""

_ROUNDS = 20
_CANDIDATES, _JUDGES = 8, 400
"""Networks among which the one is sought that all are aligned to, and those it is judged by."""


@dataclass(frozen=True)
class Frames:
    """Networks to be brought into one frame, all by what is known of the first ones.

    Attributes:
        states: a stack of their state dicts, on the CPU.
        known: how many networks, the first ones, a frame may be made of.
        device: where searches run.
        progress: told what is done, and how much of it.
    """

    states: Stack
    known: int
    device: torch.device
    progress: Callable[[str, int, int | None], None]

    def to_one(self, spec: PermutationSpec, text: str) -> Features:
        """Return the weights with every network aligned to one of the known ones.

        Of the first few it is that to which others come closest.
        """
        few = {name: tensor[: min(self.known, _JUDGES)] for name, tensor in self.states.items()}
        targets = [
            {name: tensor[number] for name, tensor in few.items()}
            for number in range(min(self.known, _CANDIDATES))
        ]

        def distance(target: Stack) -> float:
            return sum(result.distance for result in self._found(few, target, spec, text))

        return self._aligned(min(targets, key=distance), spec, text)

    def to_barycentre(self, spec: PermutationSpec, text: str) -> Features:
        """Return the weights with every network aligned to the barycentre of the known ones."""
        few = {name: tensor[: min(self.known, MOST)] for name, tensor in self.states.items()}
        found = barycentre(
            *(few, spec),
            method="batch",
            rounds=_ROUNDS,
            search=CoordinateDescent(),
            device=self.device,
            progress=self._shown(text),
        )
        _check_whole([found.status])
        return self._aligned(found.mean, spec, text)

    def _aligned(self, target: Stack, spec: PermutationSpec, text: str) -> Features:
        results = self._found(self.states, target, spec, text)
        elements = Elements.of([result.permutation for result in results])
        space = WeightSpace(spec)
        return space.act(elements, space.from_state_dicts(self.states))

    def _found(
        self, states: Stack, target: Stack, spec: PermutationSpec, text: str
    ) -> list[AlignmentResult]:
        found: Any = align(  # a stack has a list of results
            states,
            target,
            spec=spec,
            search=CoordinateDescent(),
            device=self.device,
            progress=self._shown(text),
        )
        results = [result.unwrap() for result in found]
        _check_whole([result.status for result in results])
        return results

    def _shown(self, text: str) -> Callable[[Progress], None]:
        self.progress(text, 0, None)
        return lambda step: self.progress(text, step.step, None)


def _check_whole(statuses: Sequence[Status]) -> None:
    """Go on with an interruption that a search has taken for its end."""
    if Status.INTERRUPTED in statuses:
        raise KeyboardInterrupt


def standardised_each(features: Features, known: Tensor) -> Features:
    """Return features with every entry standardised by itself, over the known networks.

    This is best for a perceptron, and no equivariant layer could take it.
    """
    made = []
    for x in features:
        std, mean = torch.std_mean(x[known], 0)
        made.append((x - mean) / torch.where(std > 0, std, torch.ones_like(std)))
    return tuple(made)


def standardised(space: WeightSpace, features: Features, known: Tensor) -> Features:
    """Return features standardised by tensor, over the known networks."""
    return space.standardise(features, space.statistics(tuple(x[known] for x in features)))


def between_classes(features: Features, labels: Tensor) -> float:
    """Return which share of the variance of networks lies between the means of classes."""
    rows, labels = in_a_row(features).double(), labels.to(features[0].device)
    means = rows.new_zeros(int(labels.max()) + 1, rows.shape[1])
    counts = torch.bincount(labels, minlength=len(means)).clamp_min(1)
    means = means.index_add(0, labels, rows) / counts[:, None]
    centre = rows.mean(0)
    return float((means[labels] - centre).square().sum() / (rows - centre).square().sum())
