"""Groups of real networks as kernels and assignment solvers see them; weights are random."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_align.kernels.rows import RowProblem, RowTerm, pack_rows

Shape = tuple[int, int]
"""Units of the other group (1 if the term has none), and the inner size d."""


@dataclass(frozen=True)
class Case:
    """The groups of one network.

    Attributes:
        name: of the network.
        groups: (units, shapes of its terms) of each group.
        batch: hypotheses.
        models: sources that they permute.
        signed: whether index vectors carry signs.
    """

    name: str
    groups: Sequence[tuple[int, Sequence[Shape]]]
    batch: int
    models: int = 1
    signed: bool = False

    @property
    def flops(self) -> int:
        """Of one similarity per hypothesis and group."""
        rows = ((n, sum(units * inner for units, inner in terms)) for n, terms in self.groups)
        return sum(2 * self.batch * n * n * length for n, length in rows)

    def bytes(self, element: int) -> int:
        """Every weight and index vector read once, every similarity written once."""
        total = 0
        for n, terms in self.groups:
            length = sum(units * inner for units, inner in terms)
            total += (1 + self.models) * n * length * element
            total += self.batch * (n * n * 4 + sum(units for units, _ in terms) * 8)
        return total

    def problems(self, device: torch.device) -> list[tuple[list[RowTerm], RowProblem]]:
        """Draw the terms of each group, and its problem: they packed, and hypotheses."""
        model = torch.arange(self.batch, device=device) % self.models
        result = []
        for n, shapes in self.groups:
            terms = [self._term(n, shape, device) for shape in shapes]
            perms = {}
            for units in {units for units, _ in shapes}:
                perm = torch.rand(self.batch, units, device=device).argsort(1)
                if self.signed:
                    perm = torch.where(torch.rand_like(perm.float()) < 0.5, ~perm, perm)
                perms[str(units)] = perm
            rows = pack_rows(terms, signed=self.signed)
            result.append((terms, RowProblem(rows, perms, model)))
        return result

    def _term(self, n: int, shape: Shape, device: torch.device) -> RowTerm:
        units, inner = shape
        target = torch.randn(n, units, inner, device=device)
        # Made as it lies when packed, so that the largest network needs no second copy.
        source = torch.randn(self.models, units, inner, n, device=device)
        return RowTerm(target, source.movedim(-1, 1), ("g", str(units)))


def torch_similarity(
    terms: Sequence[RowTerm], problem: RowProblem, limit: int = 2**28
) -> torch.Tensor:
    """Return what the kernel computes by a gather of rows and matrix products, [b, n, n] float32.

    The baseline: what one writes in torch on the weights as they are; `limit` elements at once.
    """
    size = problem.rows.size
    out = torch.zeros(len(problem.model), size, size, device=problem.rows.device)
    for term in terms:
        perm, depth = problem.perms[term.others[0]], term.target.shape[-1]
        target, source = matrices(term)
        step = max(limit // target.numel(), 1)
        for part in torch.arange(len(out)).split(step):
            chosen = slice(int(part[0]), int(part[-1]) + 1)
            rows = rows_of(perm[chosen], problem.model[chosen], depth)
            moved = source.index_select(0, rows.flatten()).reshape(*rows.shape, size)
            if problem.rows.signed:
                moved *= signs_of(perm[chosen], depth)[..., None]
            out[chosen] += target @ moved
    return out


def matrices(term: RowTerm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target [n, L] and the source [m * L, n] of a term as it is drawn, as views."""
    return term.target.flatten(1), term.source.movedim(1, -1).flatten(0, -2)


def rows_of(perm: torch.Tensor, model: torch.Tensor, depth: int) -> torch.Tensor:
    """Return which rows of a source [m * L, n] index vectors [b, units] name, int64 [b, L]."""
    index = torch.where(perm < 0, ~perm, perm) + model[:, None] * perm.shape[1]
    return (index[..., None] * depth + torch.arange(depth, device=perm.device)).flatten(1)


def signs_of(perm: torch.Tensor, depth: int) -> torch.Tensor:
    """Return the signs that index vectors give these rows, float32 [b, L]."""
    return torch.where(perm < 0, -1.0, 1.0).repeat_interleave(depth, 1)


def chain(widths: Sequence[int], inner: Sequence[int]) -> list[tuple[int, list[Shape]]]:
    """Return the groups of a chain of layers with biases.

    Args:
        widths: of inputs, hidden layers and outputs.
        inner: d of each layer's weight: kernel size, or places after a flatten.
    """
    groups = []
    for layer in range(1, len(widths) - 1):
        before, after = widths[layer - 1], widths[layer + 1]
        incoming = (before, inner[layer - 1]) if layer > 1 else (1, before * inner[0])
        outgoing = (after, inner[layer]) if layer < len(widths) - 2 else (1, after * inner[layer])
        groups.append((widths[layer], [incoming, outgoing, (1, 1)]))
    return groups


def bottlenecks(width: int, blocks: Sequence[int]) -> list[tuple[int, list[Shape]]]:
    """Return the groups of a ResNet of bottleneck blocks: two inside each, one per stage."""
    groups: list[tuple[int, list[Shape]]] = []
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        groups += [(middle, [(4 * middle, 1), (middle, 9)])] * (2 * count)
        following = [(2 * middle, 1), (8 * middle, 1)] if stage < len(blocks) - 1 else [(1, 1000)]
        groups.append((4 * middle, [(middle, 1)] * (2 * count) + following))
    return groups


def basic_blocks(width: int, count: int) -> list[tuple[int, list[Shape]]]:
    """Return the groups of a ResNet of basic blocks in three stages."""
    groups: list[tuple[int, list[Shape]]] = []
    for stage in range(3):
        units = width * 2**stage
        groups += [(units, [(units, 9)] * 2)] * count
        groups.append((units, [(units, 9)] * (2 * count)))
    return groups


VGG16 = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6, 4096, 4096, 1000]

CASES = (
    Case("MLP 3x512", chain([784, 512, 512, 512, 10], [1] * 4), batch=128),
    Case("MLP 3x4096", chain([3072, 4096, 4096, 4096, 10], [1] * 4), batch=4),
    Case("VGG16", chain(VGG16, [9] * 13 + [49, 1, 1]), batch=2),
    Case("ResNet50", bottlenecks(64, [3, 4, 6, 3]), batch=16),
    Case("ResNet20 x32", basic_blocks(512, 3), batch=2),
    Case(
        "ViT-B",
        [(3072, [(768, 1)] * 2 + [(1, 1)])] * 12 + [(768, [(3072, 1), (2304, 1), (768, 1)] * 12)],
        batch=4,
    ),
    Case("SIREN zoo", chain([2, 256, 256, 256, 3], [1] * 4), batch=256, models=256, signed=True),
    Case("square 2048", [(2048, [(2048, 1)])], batch=16),
)
