"""What is known of an answer with phases: its certificate, and the function that it keeps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._align._certificate import Certificate, certificates
from gpu_align._align._networks import Model
from gpu_align._align._result import AlignmentResult
from gpu_align._device import Engine
from gpu_align._problem import AlignmentProblem, Hypotheses, Metric, lower_bound
from gpu_align._symmetry import Comparison, Permutation, PermutationSpec, StateDict, Weights


def phase_bound(
    sources: Weights, target: Weights, metric: Metric, engine: Engine, work: float
) -> Tensor:
    """Return a bound that no order, signs and phases of the units can go below, float64 [m].

    Entries that signs or phases may negate are compared by magnitude, which is no further than with
    any signs; a bias with a phase by how near it comes with either sign and any shift.

    Args:
        sources, target: as given, on the engine's device.
        metric: one that `uses_phases` takes.
        engine: what computes.
        work: see `lower_bound`.
    """
    spec = sources.spec
    biases = {phase.bias for phase in spec.phases.values()}
    tensors = {
        name: replace(tensor, counted=tensor.counted and name not in biases)
        for name, tensor in spec.tensors.items()
    }
    apart = replace(spec, tensors=tensors)
    problem = AlignmentProblem.of_weights(
        _magnitudes(sources, apart),
        _magnitudes(target, apart),
        metric=replace(metric, odd=False),
        dtype=torch.float64,
        engine=engine,
    )
    gaps = {n: -_gaps(spec, n, sources, target) / 2 for n in spec.phases if n in problem.sizes}
    return lower_bound(problem.with_evidence(gaps), work=work).clamp_min(0)


def _magnitudes(weights: Weights, spec: PermutationSpec) -> Weights:
    """Return models with the magnitudes of what signs may negate."""
    signed = {
        name
        for name, tensor in spec.tensors.items()
        for block in tensor.blocks
        for factor in block.units.values()
        if factor.power and spec.groups[factor.group].signed
    }

    def of(state: StateDict) -> dict[str, Tensor]:
        named = ((name, tensor, spec.ties.get(name, name)) for name, tensor in state.items())
        return {name: t.double().abs() if kept in signed else t for name, t, kept in named}

    return Weights(spec, [of(state) for state in weights.states], weights.device)


def _gaps(spec: PermutationSpec, group: str, sources: Weights, target: Weights) -> Tensor:
    """Return the least squared differences of biases over signs and phases, [m, units, units]."""
    phase = spec.phases[group]
    a, b = (w[phase.bias].to(torch.float64)[:, None] for w in (target, sources))
    least = torch.full((), math.inf, dtype=torch.float64, device=a.device)
    for sign in (1, -1):
        missing = a.transpose(1, 2) - sign * b
        rest = missing - phase.shift * (missing / phase.shift).round()
        least = torch.minimum(least, rest.square())
    return least


@dataclass(frozen=True)
class Phased:
    """What a search with phases has found for some sources.

    Attributes:
        given: the sources as they were given.
        target: what they are aligned to.
        shifted: the sources with their phases shifted.
        phases: group -> int64 [m, units], as `Permutation.phases`.
    """

    given: Weights
    target: Weights
    shifted: Weights
    phases: Mapping[str, Tensor]

    def part(self, start: int, stop: int) -> "Phased":
        """Return some of the sources."""
        phases = {name: k[start:stop] for name, k in self.phases.items()}
        weights = (self.given.part(start, stop), self.target, self.shifted.part(start, stop))
        return Phased(*weights, phases)

    def permutations(self, orders: Sequence[Permutation]) -> list[Permutation]:
        """Return orders and signs of the shifted sources with the phases, for those as given."""
        found = {name: k.cpu() for name, k in self.phases.items()}
        return [
            replace(order, phases={name: k[number] for name, k in found.items()})
            for number, order in enumerate(orders)
        ]

    def certificates(
        self, exact: AlignmentProblem, orders: Hypotheses, work: float
    ) -> list[Certificate]:
        """Certify orders and signs: each group with these phases, the bound over all of them.

        Args:
            exact: the problem of the shifted sources, in float64.
            orders: one hypothesis for each.
            work: see `certificates`.
        """
        metric, engine = exact.metric, exact.engine
        given = AlignmentProblem.of_weights(
            self.given, self.target, metric=metric, dtype=torch.float64, engine=engine
        )
        bounds = phase_bound(self.given, self.target, metric, engine, work)
        before = given.each_tensor_distance()
        found = certificates(exact, orders, given=before, bounds=bounds)
        return [replace(c, lower_bound=min(c.lower_bound, c.distance)) for c in found]


def compare_rounded(
    model: Model, source: StateDict, result: AlignmentResult
) -> tuple[Comparison, str]:
    """Compare the function of a source before and after, and say what rounding adds to it.

    Order and signs are exact; a shifted bias is rounded to its dtype, so the permutation is applied
    in float64 for the comparison.

    Raises:
        ModelError: the forward fails.
    """
    rounded = model.compare(source, result.state_dict)
    if not result.shifted:
        return rounded, ""
    wide = {name: t.double() if t.is_floating_point() else t for name, t in source.items()}
    exact = model.compare(source, result.permutation.apply(wide))
    return exact, f"; by {rounded.difference:.1e} with shifted biases rounded to their dtype"
