"""Mixtures of units in the place of symmetries, for whole batches: differentiable alignments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_align._problem import Family, Member
from gpu_align.learn._cells import BlockCell, CellAxis, Features, check_features

Scores = Mapping[str, Tensor]
"""Variable of a problem -> [b, n, n], how much unit j of the source is like unit i of the target.

Those of a signed matrix say with their sign whether j is negated.
"""


def log_sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Return the logarithm of a doubly stochastic matrix, [.., n, n]; its rows sum to 1.

    In logarithms nothing underflows, however far the logits are apart.

    Source: Mena et al., Learning latent permutations with Gumbel-Sinkhorn (ICLR 2018), section 2.
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-2, keepdim=True)
        logits = logits - logits.logsumexp(-1, keepdim=True)
    return logits


def whole_logits(family: Family, scores: Scores, iterations: int) -> tuple[Tensor, Scores]:
    """Return logits of the units of a root, and of what is inside each pair of them.

    A pair of units of the root is worth its own score and what its children are expected to be
    worth inside it; a unit that may be negated weighs both signs.

    Args:
        family: of a spec.
        scores: of its variables.
        iterations: Sinkhorn iterations of the children.

    Returns:
        [b, R, R] ([b, R, 1] of a fixed root), and for each child the logarithms of doubly
        stochastic matrices, [b, R, R, s, s] ([b, R, 1, s, s]).
    """
    root = family.root_gains({m.group: _weighed(m, scores) for m in family.members})
    inner = {}
    for child in family.children:
        log = log_sinkhorn(family.blocks(_weighed(child, scores)), iterations)
        root = root + (log.exp() * family.blocks(_expected(child, scores))).sum((3, 4))
        inner[child.group] = log
    return root, inner


def _weighed(member: Member, scores: Scores) -> Tensor:
    """Return log(exp(s) + exp(-s)) of the signed scores s beside the plain ones, [b, n, n]."""
    plain = scores[member.group]
    for variable in member.variables[1:]:
        size = scores[variable].abs()
        plain = plain + size + F.softplus(-2 * size)
    return plain


def _expected(member: Member, scores: Scores) -> Tensor:
    """Return the score of each pair of units with the sign that it leans to, [b, n, n]."""
    plain = scores[member.group]
    for variable in member.variables[1:]:
        plain = plain + scores[variable] * scores[variable].tanh()
    return plain


@dataclass(frozen=True, eq=False)
class SoftElements:
    """A batch of mixtures: what stands at a place is a mean of units, with signs between -1 and 1.

    Attributes:
        roots: group -> [b, n, n], rows sum to 1.
        inner: group -> [b, R, R, s, s] ([b, R, 1, s, s]), inside each pair of units of the parent.
        leans: signed group -> how its units are signed in pairs, in the shape that it has above.
    """

    roots: Mapping[str, Tensor]
    inner: Mapping[str, Tensor]
    leans: Mapping[str, Tensor]

    @classmethod
    def of_scores(
        cls, families: Sequence[Family], scores: Scores, iterations: int = 20
    ) -> "SoftElements":
        """Scale scores until rows and columns sum to 1; of children inside pairs of parents."""
        roots: dict[str, Tensor] = {}
        inner: dict[str, Tensor] = {}
        leans = {}
        for family in families:
            root, within = whole_logits(family, scores, iterations)
            if not family.fixed:
                roots[family.root.group] = log_sinkhorn(root, iterations).exp()
            inner |= {group: log.exp() for group, log in within.items()}
            for member in family.members:
                for variable in member.variables[1:]:
                    lean = scores[variable].tanh()
                    leans[member.group] = lean if member is family.root else family.blocks(lean)
        return cls(roots, inner, leans)

    def act(self, features: Features, cells: Sequence[BlockCell], channels: int = 1) -> Features:
        """Return features [b, *sizes, fixed * channels] of each cell with mixed units.

        Raises:
            InputError: the features are not those of the cells.
        """
        check_features(features, cells, channels)
        return tuple(self._mixed(x, cell) for x, cell in zip(features, cells, strict=True))

    def _mixed(self, x: Tensor, cell: BlockCell) -> Tensor:
        """Return one cell, [b, *sizes, k]: a sum over the old place along every axis."""
        count = len(cell.axes)
        old, new, channel = [*range(1, count + 1)], [*range(1, count + 1)], 2 * count + 1
        operands: list[Tensor | list[int]] = [x, [0, *old, channel]]
        for number, axis in enumerate(cell.axes):
            if axis.key.group in self.roots:
                new[number] = count + 1 + number
                matrix = self._signed(self.roots[axis.key.group], axis)
                operands += [matrix, [0, new[number], old[number]]]
        for number, axis in enumerate(cell.axes):
            if axis.key.group not in self.inner:
                continue
            new[number] = count + 1 + number
            matrix = self._signed(self.inner[axis.key.group], axis)
            above: list[int] = []
            if axis.parent is None:
                assert axis.key.inside is not None
                matrix = matrix[:, axis.key.inside, 0]
            else:
                above = [new[axis.parent], old[axis.parent]]
            operands += [matrix, [0, *above, new[number], old[number]]]
        return torch.einsum(*operands, [0, *new, channel])

    def _signed(self, matrix: Tensor, axis: CellAxis) -> Tensor:
        is_odd = axis.odd and axis.key.group in self.leans
        return matrix * self.leans[axis.key.group] if is_odd else matrix
