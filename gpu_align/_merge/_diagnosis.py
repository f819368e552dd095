"""Why alignment does not help: what two networks have that is known to stand in its way."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from gpu_align._merge._curve import LossCurve
from gpu_align._merge._judge import Judge
from gpu_align._merge._trio import Trio
from gpu_align._network import Examples

HELPS = 0.1
"""Alignment helps if it leaves at most this share of the barrier."""

NARROW = 128
"""Units from which a layer is not called narrow."""

HARDLY = 0.5
"""A network whose loss is above this share of that of guessing is hardly trained."""

APART = 3.0
"""A loss so many times as large as the other is called much larger."""

SCALED = 2.0
"""Norms of one tensor in both networks that differ by more are called of another scale."""

CLASS_GAP = 0.3
"""Difference of accuracies on one class from which the networks do not know the same classes."""

_MOST_CLASSES = 100
_FEWEST = 10
_IGNORED = -100


@dataclass(frozen=True)
class ClassGap:
    """The class on which two networks differ most, and the share that each has right."""

    number: int
    first: float
    second: float


@dataclass(frozen=True)
class Facts:
    """What the diagnosis looks at.

    Attributes:
        before, after: the barrier without and with alignment.
        error: standard error of the latter; None if it is not known.
        with_old_statistics: the barrier with alignment, batch norms having the interpolated
            statistics; None without batch norms.
        losses: of A and of B.
        guessing: loss of the frequencies of the classes; None without classes.
        narrowest: name and units of the group with the fewest; None without groups.
        scale: name of the tensor whose norms differ most, and how many times the one of A is as
            large; None if there is none.
        gap: see `ClassGap`; None without classes.
        distances: before and after alignment; None if they are not known.
    """

    before: float
    after: float
    error: float | None = None
    with_old_statistics: float | None = None
    losses: tuple[float, float] = (0.0, 0.0)
    guessing: float | None = None
    narrowest: tuple[str, int] | None = None
    scale: tuple[str, float] | None = None
    gap: ClassGap | None = None
    distances: tuple[float, float] | None = None

    @property
    def is_helped(self) -> bool:
        """Whether alignment leaves little of the barrier, or none that could be measured."""
        return self.after <= max(HELPS * self.before, 2 * (self.error or 0.0))


def diagnose(facts: Facts) -> tuple[str, ...]:
    """Return sentences that say why alignment does not help; none if it does."""
    found = list(_statistics(facts))
    if not facts.is_helped:
        causes = [sentence for rule in _RULES for sentence in rule(facts)]
        found += causes or [_unknown(facts)]
    return tuple(found)


def facts_of(
    before: LossCurve, after: LossCurve, plain: LossCurve | None, trio: Trio, judge: Judge
) -> Facts:
    """Gather what the diagnosis looks at; classes only if alignment does not help.

    Args:
        before, after: without and with alignment.
        plain: with alignment, batch norms having the interpolated statistics; None without them.
        trio, judge: what was measured, and by what.
    """
    found = trio.found
    facts = Facts(before.barrier, after.barrier, after.barrier_error)
    return Facts(
        before.barrier,
        after.barrier,
        after.barrier_error,
        with_old_statistics=None if plain is None else plain.barrier,
        losses=(before.losses[0], before.losses[-1]),
        guessing=guessing(judge.examples) if judge.loss in ("auto", "cross_entropy") else None,
        narrowest=_narrowest(trio),
        scale=_scale(trio),
        gap=None if facts.is_helped else class_gap(judge, trio),
        distances=None if found is None else (found.distance_before, found.distance),
    )


def _statistics(facts: Facts) -> Iterator[str]:
    old = facts.with_old_statistics
    if old is not None and old > 2 * facts.after and old - facts.after > 0.1 * max(facts.losses):
        yield (
            f"Statistics: with the interpolated statistics of the batch norms the barrier is "
            f"{old:.4g}, with re-estimated ones {facts.after:.4g}; re-estimate them in whatever is "
            "merged."
        )


def _distance(facts: Facts) -> Iterator[str]:
    if facts.distances is None:
        return
    old, new = facts.distances
    if new < old and facts.after > facts.before:
        yield (
            f"Distance: it fell from {old:.6g} to {new:.6g}, and yet the barrier rose from "
            f"{facts.before:.4g} to {facts.after:.4g}; the closest weights are not the best to "
            "merge here, so align by activations too."
        )


def _width(facts: Facts) -> Iterator[str]:
    if facts.narrowest is not None and facts.narrowest[1] < NARROW:
        name, units = facts.narrowest
        yield (
            f"Narrow: group {name} has {units} units; with fewer than {NARROW} many units have no "
            "partner in the other network, and barriers fall with the width (Ainsworth et al. "
            "2023, section 5)."
        )


def _training(facts: Facts) -> Iterator[str]:
    if facts.guessing is not None and min(facts.losses) > HARDLY * facts.guessing:
        first, second = facts.losses
        yield (
            f"Under-trained: A and B have losses of {first:.4g} and {second:.4g}, and guessing by "
            f"the frequency of the classes has {facts.guessing:.4g}; networks become connected in "
            "the course of training only."
        )


def _task(facts: Facts) -> Iterator[str]:
    low, high = sorted(facts.losses)
    worst = "A" if facts.losses[0] == high else "B"
    matters = facts.guessing is None or high > HARDLY / 2 * facts.guessing
    if low > 0 and high > APART * low and matters:
        yield (
            f"Other task: {worst} has a loss of {high:.4g} on these data, {high / low:.3g} times "
            "that of the other network; it was trained on other data, or less."
        )
    if facts.gap is not None and abs(facts.gap.first - facts.gap.second) > CLASS_GAP:
        gap = facts.gap
        yield (
            f"Other classes: of class {gap.number}, A has {100 * gap.first:.1f} % right and B "
            f"{100 * gap.second:.1f} %; where networks know other classes, units have no partners."
        )


def _scales(facts: Facts) -> Iterator[str]:
    if facts.scale is None:
        return
    name, ratio = facts.scale
    if max(ratio, 1 / ratio) > SCALED:
        small, large = ("B", "A") if ratio > 1 else ("A", "B")
        yield (
            f"Scale: {name} of {large} has {max(ratio, 1 / ratio):.3g} times the norm of that of "
            f"{small}, and a permutation changes no norm; bring both into one form by canonicalize "
            "where units have free scales, or train with the same settings."
        )


_RULES: tuple[Callable[[Facts], Iterator[str]], ...] = (
    _distance,
    _width,
    _training,
    _task,
    _scales,
)


def _unknown(facts: Facts) -> str:
    return (
        f"Alignment leaves {facts.after:.4g} of a barrier of {facts.before:.4g}, and the cause is "
        "none of those that are looked for: distance, width, training, task and scale. Another "
        "search, or alignment by activations, may find a better permutation."
    )


def guessing(examples: Examples) -> float | None:
    """Return the loss of who knows how frequent each class is; None without classes."""
    targets = [lot.targets for lot in examples.lots]
    if any(t is None or t.is_floating_point() or t.is_complex() for t in targets):
        return None
    classes = torch.cat([t.flatten() for t in targets if t is not None])
    _, counts = classes[classes != _IGNORED].unique(return_counts=True)
    shares = counts.double() / counts.sum()
    return float(-(shares * shares.log()).sum())


def class_gap(judge: Judge, trio: Trio) -> ClassGap | None:
    """Find the class on which A and B differ most; None if examples are not of one class each."""
    examples = judge.examples
    targets = examples.lots[0].targets
    if len(examples.lots) > 1 or targets is None or targets.ndim != 1:
        return None
    if guessing(examples) is None:
        return None
    classes, counts = targets.unique(return_counts=True)
    if len(classes) > _MOST_CLASSES:
        return None
    gaps = []
    for number in classes[counts >= _FEWEST].tolist():
        part = examples.subset((targets == number).nonzero().flatten())
        shares = [judge.score_on(part, state).accuracy for state in (trio.a, trio.b)]
        if shares[0] is None or shares[1] is None:
            return None
        gaps.append(ClassGap(number, shares[0], shares[1]))
    return max(gaps, key=lambda gap: abs(gap.first - gap.second), default=None)


def _narrowest(trio: Trio) -> tuple[str, int] | None:
    groups = trio.spec.groups.values()
    roots = [group for group in groups if group.parent is None and not group.fixed]
    least = min(roots, key=lambda group: group.size, default=None)
    return None if least is None else (least.name, least.size)


def _scale(trio: Trio) -> tuple[str, float] | None:
    """Return the matrix or kernel whose norms differ most, and their ratio."""
    ratios = {}
    for name, tensor in trio.a.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        first, second = (float(s[name].double().norm()) for s in (trio.a, trio.b))
        if first > 0 and second > 0:
            ratios[name] = first / second
    return max(ratios.items(), key=lambda item: abs(math.log(item[1])), default=None)
