"""Families: a group and the groups inside it, which every search moves as one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._device import RandomStream
from gpu_align._problem._signed import picked, signed_matrix, with_sign
from gpu_align._symmetry import PermutationSpec

Matcher = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Solves assignments to be maximised: [b, n, n] -> columns int64 [b, n] and values [b]."""


@dataclass(frozen=True)
class Member:
    """A group of a family.

    Attributes:
        group: name of the group.
        size: number of units; of a child, inside each unit of the root.
        signed: whether units may be negated.
    """

    group: str
    size: int
    signed: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the matrices that the group has in the objective.

        The plain permutation matrix, and for a signed group the signed one: entries that do not
        see the sign couple to the first, the others to the second.
        """
        return (self.group, signed_matrix(self.group)) if self.signed else (self.group,)

    def unit_gains(self, similarity: Mapping[str, Tensor]) -> Tensor:
        """Return by how much F grows with each pair of units and its best sign, [b, n, n].

        Args:
            similarity: variable -> [b, n, n].
        """
        plain = similarity[self.group]
        return plain + similarity[signed_matrix(self.group)].abs() if self.signed else plain


@dataclass(frozen=True)
class Family:
    """A root and its children: all that is decided by one two-level assignment.

    Units of a child are numbered (unit of the root, unit inside it): its matrices are n x n with
    n = root.size * child.size, in blocks of child.size.

    Attributes:
        root: the group that others may have as their parent.
        children: groups with units inside each unit of the root.
    """

    root: Member
    children: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The root and the children."""
        return (self.root, *self.children)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of all matrices of the family."""
        return tuple(variable for member in self.members for variable in member.variables)

    def units(self, member: Member) -> int:
        """Return the number of units of a member, over all units of the root."""
        return member.size if member is self.root else member.size * self.root.size

    def random(self, owners: Tensor, random: RandomStream) -> dict[str, Tensor]:
        """Draw vectors uniformly, variable -> int64 [b, n].

        Args:
            owners: int64 [b], whose numbers are drawn; equal owners draw alike.
            random: the stream.
        """
        root = random.permutation(owners, self.root.size)
        perms = {self.root.group: root}
        for child in self.children:
            inner = random.permutation(owners, self.root.size, child.size)
            perms[child.group] = self._flat(root, inner)
        signed = {}
        for member in self.members:
            if member.signed:
                perm = perms[member.group]
                negative = random.uniform(owners, perm.shape[1]) < 0.5
                signed[signed_matrix(member.group)] = with_sign(perm, negative)
        return perms | signed

    # The two-level assignment

    def assign(self, similarity: Mapping[str, Tensor], match: Matcher) -> dict[str, Tensor]:
        """Return the best vectors of all matrices, variable -> int64 [b, n].

        Inside each pair of units of the roots the children are assigned, all pairs in one batch;
        the root is assigned on the values found; a sign is that of its similarity.

        Args:
            similarity: variable -> [b, n, n], the gradient of F.
            match: solves assignments.
        """
        outer, inner = self.outer(self.unit_gains(similarity), match)
        return self.vectors(match(outer)[0], inner, similarity)

    def bound(self, similarity: Mapping[str, Tensor], match: Matcher) -> Tensor:
        """Return the value of the two-level assignment, [b].

        With a `match` that returns upper bounds for values, it is one for the whole family.
        """
        outer, _ = self.outer(self.unit_gains(similarity), match)
        return match(outer)[1]

    def unit_gains(self, similarity: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `Member.unit_gains` of every member, group -> [b, n, n]."""
        return {member.group: member.unit_gains(similarity) for member in self.members}

    def outer(
        self, unit_gains: Mapping[str, Tensor], match: Matcher
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Solve the children inside each pair of units of the root.

        Args:
            unit_gains: group -> [b, n, n].
            match: solves assignments.

        Returns:
            What each pair of root units gains, [b, R, R] with R = root.size, and for each child
            the assignments inside each pair, int64 [b, R, R, child.size].
        """
        total, inner = unit_gains[self.root.group], {}
        for child in self.children:
            blocks = self.blocks(unit_gains[child.group])
            columns, values = match(blocks.flatten(0, 2))
            inner[child.group] = columns.reshape(blocks.shape[:-1])
            total = total + values.reshape(blocks.shape[:3]).to(total.dtype)
        return total, inner

    def vectors(
        self, root: Tensor, inner: Mapping[str, Tensor], similarity: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the vectors of all matrices, variable -> int64 [b, n].

        Args:
            root: int64 [b, R].
            inner: child -> int64 [b, R, R, s], the assignment inside each pair of root units.
            similarity: variable -> [b, n, n]; signed matrices get its signs.
        """
        perms = {self.root.group: root}
        for child in self.children:
            chosen = root[..., None, None].expand(-1, -1, 1, child.size)
            perms[child.group] = self._flat(root, inner[child.group].gather(2, chosen)[:, :, 0])
        for member in self.members:
            if member.signed:
                variable, perm = signed_matrix(member.group), perms[member.group]
                negative = similarity[variable].gather(2, perm[..., None])[..., 0] < 0
                perms[variable] = with_sign(perm, negative)
        return perms

    def blocks(self, matrix: Tensor) -> Tensor:
        """Cut a child's matrix into its blocks: [b, n, n] -> [b, R, R, s, s]."""
        size = matrix.shape[1] // self.root.size
        cut = matrix.reshape(len(matrix), self.root.size, size, self.root.size, size)
        return cut.transpose(2, 3)

    @staticmethod
    def joined(blocks: Tensor) -> Tensor:
        """Undo `blocks`: [b, R, R, s, s] -> [b, n, n]."""
        size = blocks.shape[1] * blocks.shape[3]
        return blocks.transpose(2, 3).reshape(len(blocks), size, size)

    def _flat(self, root: Tensor, inner: Tensor) -> Tensor:
        """Number units over all of the root: [b, R], [b, R, s] -> [b, R * s]."""
        return (root[..., None] * inner.shape[2] + inner).flatten(1)


def value_increase(
    similarity: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> Tensor:
    """Return by how much F grows for a family with these similarities, float64 [b].

    Exact where no term couples two matrices of the family.
    """
    parts = [picked(s, after[m]) - picked(s, before[m]) for m, s in similarity.items()]
    return torch.stack(parts).sum(0)


def families_of(spec: PermutationSpec, *, signs: bool) -> tuple[Family, ...]:
    """Return the families of a spec in topological order; a single unit without a sign is left out.

    A child whose parent is left out is a root. A root whose signs are seen beside one of its
    children keeps them: entries there would change with two signs at once.

    Args:
        spec: the symmetries.
        signs: whether signed groups may be negated.
    """
    kept = set(_signs_beside_children(spec))
    signed = {n for n, group in spec.groups.items() if group.signed and n not in kept}
    free = {n: group for n, group in spec.groups.items() if group.size > 1 or n in signed}
    members = {n: Member(n, group.size, signs and n in signed) for n, group in free.items()}

    def children(root: str) -> tuple[Member, ...]:
        return tuple(members[name] for name, group in free.items() if group.parent == root)

    roots = [name for name, group in free.items() if group.parent not in free]
    return tuple(Family(members[root], children(root)) for root in roots)


def _signs_beside_children(spec: PermutationSpec) -> Iterator[str]:
    """Yield the groups that have a power in a block in which one of their children lies."""
    for tensor in spec.tensors.values():
        for block in tensor.blocks:
            factors = [factor for factor in block.factors if factor.group is not None]
            parents = {spec.groups[factor.group or ""].parent for factor in factors}
            yield from (f.group or "" for f in factors if f.power and f.group in parents)
