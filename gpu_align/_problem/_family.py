"""Families: a group and the groups inside it, which every search moves as one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._device import RandomStream
from gpu_align._problem._signed import is_signed, picked, signed_matrix, with_sign
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
    n = root.size * child.size, in blocks of child.size. Those of a fixed root's children have
    nothing but the R = root.size blocks on the diagonal: one of R pairs [b, R, 1] instead of
    [b, R, R] for each unit of the root.

    Attributes:
        root: the group that others may have as their parent.
        children: groups with units inside each unit of the root; at least one of a fixed root.
        fixed: whether the units of the root stay where they are; then it has no matrix.
    """

    root: Member
    children: tuple[Member, ...] = ()
    fixed: bool = False

    @property
    def members(self) -> tuple[Member, ...]:
        """The groups with something to decide: the root, unless it is fixed, and the children."""
        return self.children if self.fixed else (self.root, *self.children)

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
        if self.fixed:
            root, perms = self._still(owners), {}
        else:
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
        if self.fixed:
            return outer.diagonal(dim1=1, dim2=2).sum(1)
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
            the assignments inside each pair, int64 [b, R, R, child.size] ([b, R, 1, child.size]).
        """
        total, inner = self.root_gains(unit_gains), {}
        for child in self.children:
            blocks = self.blocks(unit_gains[child.group])
            columns, values = match(blocks.flatten(0, 2))
            inner[child.group] = columns.reshape(blocks.shape[:-1])
            total = total + values.reshape(blocks.shape[:3]).to(total.dtype)
        return self.square(total), inner

    def root_gains(self, unit_gains: Mapping[str, Tensor]) -> Tensor:
        """Return what pairs of root units gain without their children, [b, R, R] ([b, R, 1])."""
        if not self.fixed:
            return unit_gains[self.root.group]
        gains = unit_gains[self.children[0].group]
        return gains.new_zeros(len(gains), self.root.size, 1)

    def square(self, gains: Tensor) -> Tensor:
        """Return the gains of pairs of root units as a matrix, [b, R, R]."""
        return torch.diag_embed(gains[:, :, 0]) if self.fixed else gains

    def vectors(
        self, root: Tensor, inner: Mapping[str, Tensor], similarity: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the vectors of all matrices, variable -> int64 [b, n].

        Args:
            root: int64 [b, R]; that of a fixed root is not looked at.
            inner: child -> int64 [b, R, R, s] ([b, R, 1, s]), the assignment inside each pair of
                root units.
            similarity: variable -> [b, n, n]; signed matrices get its signs.
        """
        pair, perms = root, {self.root.group: root}
        if self.fixed:
            pair, root, perms = torch.zeros_like(root), self._still(root), {}
        for child in self.children:
            chosen = pair[..., None, None].expand(-1, -1, 1, child.size)
            perms[child.group] = self._flat(root, inner[child.group].gather(2, chosen)[:, :, 0])
        for member in self.members:
            if member.signed:
                variable, perm = signed_matrix(member.group), perms[member.group]
                negative = similarity[variable].gather(2, perm[..., None])[..., 0] < 0
                perms[variable] = with_sign(perm, negative)
        return perms

    def blocks(self, matrix: Tensor) -> Tensor:
        """Cut a child's matrix into its blocks: [b, n, n] -> [b, R, R, s, s] ([b, R, 1, s, s])."""
        size = matrix.shape[1] // self.root.size
        cut = matrix.reshape(len(matrix), self.root.size, size, self.root.size, size)
        blocks = cut.transpose(2, 3)
        return blocks.diagonal(dim1=1, dim2=2).movedim(3, 1)[:, :, None] if self.fixed else blocks

    @staticmethod
    def joined(blocks: Tensor) -> Tensor:
        """Undo `blocks`: [b, R, R, s, s] ([b, R, 1, s, s]) -> [b, n, n]."""
        if blocks.shape[2] < blocks.shape[1]:
            blocks = torch.diag_embed(blocks[:, :, 0].movedim(1, 3), dim1=1, dim2=2)
        size = blocks.shape[1] * blocks.shape[3]
        return blocks.transpose(2, 3).reshape(len(blocks), size, size)

    def _still(self, like: Tensor) -> Tensor:
        """Return root units that stay where they are, int64 [b, R]."""
        return torch.arange(self.root.size, device=like.device).expand(len(like), -1)

    def _flat(self, root: Tensor, inner: Tensor) -> Tensor:
        """Number units over all of the root: [b, R], [b, R, s] -> [b, R * s]."""
        return (root[..., None] * inner.shape[2] + inner).flatten(1)


def value_increase(
    similarity: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> Tensor:
    """Return by how much F grows for a family with these similarities, float64 [b].

    Exact where no term couples two matrices of the family.
    """
    first, *others = (
        picked(s, after[m], signed=is_signed(m)) - picked(s, before[m], signed=is_signed(m))
        for m, s in similarity.items()
    )
    return torch.stack([first, *others]).sum(0) if others else first


def families_of(spec: PermutationSpec, *, signs: bool) -> tuple[Family, ...]:
    """Return the families of a spec in topological order; a single unit without a sign is left out.

    So is a fixed group without children. A child whose parent is left out is a root. A root whose
    signs are seen beside one of its children keeps them: entries there would change with two signs
    at once.

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

    roots = [group for group in free.values() if group.parent not in free]
    families = (Family(members[root.name], children(root.name), root.fixed) for root in roots)
    return tuple(family for family in families if family.members)


def _signs_beside_children(spec: PermutationSpec) -> Iterator[str]:
    """Yield the groups that have a power in a block in which one of their children lies."""
    for tensor in spec.tensors.values():
        for block in tensor.blocks:
            parents = {spec.groups[factor.group].parent for factor in block.units.values()}
            yield from (f.group for f in block.units.values() if f.power and f.group in parents)
