"""What an aligner is trained on: three losses, none of which needs labels of units."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_align._device import RandomStream
from gpu_align._errors import InputError
from gpu_align._network import TaskLoss
from gpu_align._problem import Family
from gpu_align._symmetry import StateDict
from gpu_align.learn._cells import Features
from gpu_align.learn._elements import Elements
from gpu_align.learn._soft import Scores, whole_logits
from gpu_align.learn._space import WeightSpace

_ON_THE_WAY = 4
"""Pairs of a step between which a network is run: with all 16 it took half of the time."""


@dataclass(frozen=True)
class AlignerLosses:
    """How much each loss counts, and how it is computed.

    Attributes:
        planted: of the cross-entropy between a network and itself in another order, with noise.
        distance: of the squared distance between a network and another one, softly aligned to it,
            as a share of their squared norms.
        path: of the task loss at a random place between two such networks, where there is one.
        noise: standard deviation of the noise on planted networks, as a share of that of a tensor.
        iterations: of Sinkhorn's scaling.

    Source: Deep-Align (Navon et al., ICML 2024), section 5: L_supervised, L_alignment and L_LMC.
    """

    planted: float = 0.1
    distance: float = 5.0
    path: float = 0.3
    noise: float = 0.1
    iterations: int = 20

    def __post_init__(self) -> None:
        weights = (self.planted, self.distance, self.path)
        if min(*weights, self.noise) < 0 or max(weights) == 0 or self.iterations < 1:
            raise InputError(
                "expected losses that count at least 0, one of them more, noise of at least 0 and "
                f"at least 1 iteration, got {self}"
            )


def planted_loss(
    families: Sequence[Family], scores: Scores, truth: Elements, iterations: int
) -> Tensor:
    """Return the mean cross-entropy of the scores against known symmetries.

    Over the rows and the columns of every root, over the units inside each true pair of parents,
    and over the signs.

    Args:
        families: of the spec.
        scores: of targets and sources.
        truth: what puts the units of each source where those of its target are.
        iterations: Sinkhorn iterations of units inside others.
    """
    losses = []
    for family in families:
        logits, inner = whole_logits(family, scores, iterations)
        pairs = torch.zeros_like(logits[:, :, 0], dtype=torch.int64)
        if not family.fixed:
            pairs = truth.perms[family.root.group].to(logits.device)
            both = logits.log_softmax(1) + logits.log_softmax(2)
            losses.append(-both.gather(2, pairs[..., None]).mean() / 2)
        for child in family.children:
            chosen = pairs[..., None, None, None].expand(-1, -1, 1, child.size, child.size)
            within = inner[child.group].gather(2, chosen)[:, :, 0]
            units = truth.perms[child.group].to(logits.device) % child.size
            units = units.reshape(*pairs.shape, child.size, 1)
            losses.append(-within.gather(3, units).mean())
        for member in family.members:
            for variable in member.variables[1:]:
                perm = truth.perms[member.group].to(logits.device)
                lean = scores[variable].gather(2, perm[..., None])[..., 0]
                losses.append(F.softplus(-2 * lean * truth.signs[member.group].to(lean)).mean())
    return torch.stack(losses).mean()


def distance_share(target: Features, source: Features, aligned: Features) -> Tensor:
    """Return the squared distance of aligned networks as a share of the squared norms, [b].

    Args:
        target, source: features [b, ...] of pairs of networks.
        aligned: the sources in another order, or with mixtures of their units.
    """
    apart = _squared([a - b for a, b in zip(target, aligned, strict=True)])
    return apart / _squared([*target, *source])


def _squared(features: Sequence[Tensor]) -> Tensor:
    """Return the squared norms of networks, [b]."""
    return torch.stack([x.square().flatten(1).sum(1) for x in features]).sum(0)


def path_loss(
    space: WeightSpace,
    target: Features,
    aligned: Features,
    like: StateDict,
    task: TaskLoss,
    seed: int,
) -> Tensor:
    """Return the mean task loss of a network on the way between the first few of some pairs.

    Args:
        space: of the networks.
        target, aligned: features [b, ...] of one channel.
        like: the targets, a stack, for what is not among the features.
        task: the loss, whose batch is drawn by the seed.
        seed: of the batch; the places on the way come from torch's generator.
    """
    shares = torch.rand(min(len(target[0]), _ON_THE_WAY), device="cpu")
    between = []
    for a, b in zip(target, aligned, strict=True):
        share = shares.to(a).reshape(-1, *(1,) * (a.ndim - 1))
        between.append(torch.lerp(a[: len(share)], b[: len(share)], share))
    some = {name: tensor[: len(shares)] for name, tensor in like.items()}
    states = space.to_state_dicts(tuple(between), some)
    batch = task.draw(RandomStream(seed))
    each = [{name: tensor[n] for name, tensor in states.items()} for n in range(len(shares))]
    return torch.stack([task.of_batch(state, batch) for state in each]).mean()
