"""Evidence of a collection: how the units of every two networks correlate, in a common frame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gpu_align._align._evidence import Correlations, scales, stacked
from gpu_align._align._settings import Settings
from gpu_align._problem import METRICS, AlignmentProblem, compute_dtype, is_signed, unsigned
from gpu_align._process import full_precision
from gpu_align._symmetry import Permutation, PermutationSpec, StateDict, Weights

Pairs = Mapping[tuple[int, int], Correlations]
"""(i, j) with i < j -> correlations, unit of network i and unit of network j."""


def pairs_bytes(spec: PermutationSpec, count: int) -> int:
    """Return about how many bytes the correlations of all pairs of some networks take."""
    return 8 * count * (count - 1) // 2 * sum(spec.units(group) ** 2 for group in spec.groups)


@dataclass(frozen=True)
class CommonEvidence:
    """What correlations say for a common frame, in the units of the squared weights.

    Attributes:
        pairs: the correlations.
        factors: group -> what its correlations are multiplied by, for all pairs alike, so that
            rounds that serve one network after another raise one sum.
    """

    pairs: Pairs
    factors: Mapping[str, float]

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        alpha: float,
        spec: PermutationSpec,
        settings: Settings,
        states: Sequence[StateDict],
        frame: Sequence[Permutation],
    ) -> "CommonEvidence":
        """Scale correlations like `guided`, by what the weights are worth in a frame of theirs.

        Args:
            pairs: of the networks as they were given.
            alpha: how much correlations count; with 1 as much as the weights.
            spec: of all networks.
            settings: where the scale is computed.
            states: the networks in the frame; weights of the first one with each other are looked
                at.
            frame: what brought each network there.
        """
        totals: dict[str, list[float]] = {}
        device = settings.engine.device
        target = Weights(spec, [states[0]], device)
        with full_precision():
            for number in range(1, len(states)):
                problem = AlignmentProblem.of_weights(
                    Weights(spec, [states[number]], device),
                    target,
                    metric=METRICS["l2"],
                    dtype=compute_dtype(spec, [states[number], states[0]]),
                    engine=settings.engine,
                )
                found = _moved(pairs[0, number], frame[0], frame[number])
                given = stacked(problem, [found])
                for group, one in scales(problem, given, alpha, problem.identity()).items():
                    totals.setdefault(group, []).append(float(one))
        return cls(pairs, {group: sum(each) / len(each) for group, each in totals.items()})

    def towards(
        self, network: int, frame: Sequence[Permutation], others: Sequence[int]
    ) -> Correlations:
        """Return the evidence that others give a network, their mean.

        Args:
            network: its number.
            frame: what brought each network to where it stands.
            others: their numbers; its own is left out.

        Returns:
            Matrix of an AlignmentProblem -> float64 [1, n, n], place in the frame and unit of the
            network where it stands.
        """
        found: Correlations = {}
        pairs = list(self._with(network, others))
        for other, matrices in pairs:
            for name, matrix in _moved(matrices, frame[other], frame[network]).items():
                found[name] = found[name].add_(matrix) if name in found else matrix
        factors = {name: self.factors[unsigned(name)] / len(pairs) for name in found}
        return {name: (factors[name] * matrix)[None] for name, matrix in found.items()}

    def agreement(self, network: int, frame: Sequence[Permutation], others: Sequence[int]) -> float:
        """Return what the evidence that others give a network is worth where it stands."""
        total = 0.0
        pairs = list(self._with(network, others))
        for other, matrices in pairs:
            for name, matrix in matrices.items():
                (rows, row_signs), (columns, column_signs) = (
                    _vectors(frame[number], name, matrix) for number in (other, network)
                )
                picked = matrix[rows, columns] * row_signs * column_signs
                total += self.factors[unsigned(name)] * float(picked.sum())
        return total / len(pairs)

    def _with(self, network: int, others: Sequence[int]) -> Iterator[tuple[int, Correlations]]:
        """Yield each other network, and its correlations with this one, [other, this]."""
        for other in others:
            if other < network:
                yield other, self.pairs[other, network]
            elif other > network:
                pair = self.pairs[network, other]
                yield other, {name: matrix.T for name, matrix in pair.items()}


def _moved(matrices: Correlations, rows: Permutation, columns: Permutation) -> Correlations:
    """Return the correlations of two networks that were permuted, in memory of their own."""
    found: Correlations = {}
    for name, matrix in matrices.items():
        (row, row_signs), (column, column_signs) = (
            _vectors(permutation, name, matrix) for permutation in (rows, columns)
        )
        found[name] = matrix[row[:, None], column] * row_signs[:, None] * column_signs
    return found


def _vectors(permutation: Permutation, name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the units of a matrix in their new order and their signs there, [n] each."""
    group = unsigned(name)
    units = permutation[group].to(matrix.device)
    signs = permutation.signs.get(group) if is_signed(name) else None
    return units, matrix.new_ones(len(units)) if signs is None else signs.to(matrix)
