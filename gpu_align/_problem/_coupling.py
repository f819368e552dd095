"""Which terms couple which variables of a problem."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from gpu_align._problem._family import Family
from gpu_align._problem._form import AnyTerm
from gpu_align._problem._sibling_term import SiblingTerm


class Coupling:
    """What `AlignmentProblem` knows of its terms without looking at weights.

    Attributes:
        families: name of the root -> Family, in topological order.
        order: names of the roots, as a search takes them one after another.
        terms: terms that couple two or more matrices.
    """

    families: Mapping[str, Family]
    order: list[str]
    terms: tuple[AnyTerm, ...]

    def terms_of(self, variable: str) -> tuple[AnyTerm, ...]:
        """Return the coupling terms in which a matrix takes part."""
        return tuple(term for term in self.terms if variable in term.variables)

    def modes_of(self, variable: str) -> Sequence[tuple[AnyTerm, int]]:
        """Return the coupling terms of a matrix, each with every index that it has there."""
        return self._modes[variable]

    def roots(self, term: AnyTerm) -> tuple[str, ...]:
        """Return the group that each matrix of a term is decided with."""
        return tuple(self._root_of[variable] for variable in term.variables)

    def family_terms(self, group: str) -> tuple[AnyTerm, ...]:
        """Return the coupling terms in which any matrix of a family takes part."""
        return self._family_terms[group]

    def sibling_terms(self, group: str) -> tuple[SiblingTerm, ...]:
        """Return the terms that couple children of a family with each other."""
        variables = self.families[group].variables
        siblings = (term for term in self.family_terms(group) if isinstance(term, SiblingTerm))
        return tuple(term for term in siblings if term.variables[0] in variables)

    def neighbours(self, group: str) -> tuple[str, ...]:
        """Return the groups whose similarity changes when `group` moves; itself if quadratic."""
        return self._neighbours[group]

    @cached_property
    def coupling(self) -> Tensor:
        """Which groups share a term, bool [groups, groups] on the host."""
        coupled = torch.zeros(len(self.order), len(self.order), dtype=torch.bool, device="cpu")
        for number, group in enumerate(self.order):
            for neighbour in self.neighbours(group):
                coupled[number, self.order.index(neighbour)] = True
        return coupled

    def seen_from(self, group: str) -> frozenset[str]:
        """Return the matrices of a family and those that its similarities depend on."""
        terms = self.family_terms(group)
        return frozenset(self.families[group].variables).union(*(term.variables for term in terms))

    def is_quadratic(self, group: str) -> bool:
        """Say whether a term couples two matrices of a family, or one with itself."""
        return group in self.neighbours(group)

    @cached_property
    def _modes(self) -> dict[str, list[tuple[AnyTerm, int]]]:
        found: dict[str, list[tuple[AnyTerm, int]]] = {variable: [] for variable in self._root_of}
        for term in self.terms:
            for mode, variable in enumerate(term.variables):
                found[variable].append((term, mode))
        return found

    @cached_property
    def _root_of(self) -> dict[str, str]:
        return {m: root for root, family in self.families.items() for m in family.variables}

    @cached_property
    def _family_terms(self) -> dict[str, tuple[AnyTerm, ...]]:
        found: dict[str, list[AnyTerm]] = {group: [] for group in self.order}
        for term in self.terms:
            for group in dict.fromkeys(self.roots(term)):
                found[group].append(term)
        return {group: tuple(terms) for group, terms in found.items()}

    @cached_property
    def _neighbours(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {group: {} for group in self.order}
        for group, neighbours in found.items():
            for term in self.family_terms(group):
                others = list(self.roots(term))
                others.remove(group)
                neighbours.update(dict.fromkeys(others))
        return {group: tuple(neighbours) for group, neighbours in found.items()}
