"""Several children of one root on one tensor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gpu_align._device._random import RandomStream
from gpu_align._problem import (
    Family,
    Member,
    SiblingTerm,
    Term,
    to_matrix,
)

SIBLINGS = {
    "two": (("c", "d"), ()),
    "three": (("c", "d", "e"), ()),
    "one_twice": (("c", "c"), ()),
    "with_others": (("c", "d"), ("x", "y")),
    "with_another_twice": (("d", "c"), ("y", "y")),
    "signed": (("c±", "d"), ("x±",)),
    "both_kinds": (("c", "c±"), ("x",)),
}
EXTENTS = {"c": 2, "d": 3, "e": 2, "x": 2, "y": 3}
ROOT, BATCH, MODELS = 3, 4, 2
MODEL = torch.tensor([0, 1, 1, 0])


def extent(matrix: str) -> int:
    return EXTENTS[matrix[0]]


@pytest.fixture(params=SIBLINGS)
def siblings(request: pytest.FixtureRequest) -> tuple[SiblingTerm, Term]:
    """A term of siblings, and the plain term with zeros wherever their root units differ."""
    children, others = SIBLINGS[request.param]
    ends = [*map(extent, others), 2]
    shape = [ROOT, *map(extent, children), *ends]
    stored = torch.randn(1 + MODELS, *shape, dtype=torch.float64)
    dense = stored.new_zeros(1 + MODELS, *(ROOT * extent(c) for c in children), *ends)
    for root, *inside in np.ndindex(ROOT, *map(extent, children)):
        units = [root * extent(c) + i for c, i in zip(children, inside, strict=True)]
        dense[(slice(None), *units)] = stored[(slice(None), root, *inside)]
    matrices = (*children, *others)
    term = SiblingTerm(matrices, len(children), stored[0], stored[1:])
    return term, Term(matrices, dense[0], dense[1:])


@pytest.fixture
def vectors(stream: RandomStream) -> dict[str, Tensor]:
    """Vectors of all matrices of all terms: those of one family, and of two other groups."""
    children = tuple(Member(name, EXTENTS[name], True) for name in "cde")
    drawn = Family(Member("root", ROOT, False), children).random(torch.arange(BATCH), stream)
    for name in "xy":
        drawn |= Family(Member(name, EXTENTS[name], True)).random(torch.arange(BATCH), stream)
    return drawn


@pytest.fixture
def soft(generator: torch.Generator, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arbitrary matrices: the terms are multilinear on all of them."""
    return {
        matrix: torch.randn(
            BATCH, perm.shape[1], perm.shape[1], generator=generator, dtype=torch.float64
        )
        for matrix, perm in vectors.items()
    }


@pytest.mark.parametrize("chunk", [1, 2**26], ids=["chunks", "whole"])
def test_siblings_equal_the_dense_term(
    siblings: tuple[SiblingTerm, Term],
    vectors: dict[str, Tensor],
    soft: dict[str, Tensor],
    chunk: int,
) -> None:
    term, dense = replace(siblings[0], chunk_elements=chunk), siblings[1]
    assert torch.allclose(term.inner(vectors, MODEL), dense.inner(vectors, MODEL))
    for place in range(len(term.variables)):
        hard = (t.similarity(place, vectors, MODEL) for t in (term, dense))
        assert torch.allclose(*hard)
        mixed = (t.soft_similarity(place, soft, MODEL) for t in (term, dense))
        assert torch.allclose(*mixed)
        assert torch.allclose(term.squared_norms(place), dense.squared_norms(place))


def test_similarity_of_pairs_is_that_of_the_guess(
    siblings: tuple[SiblingTerm, Term], vectors: dict[str, Tensor], soft: dict[str, Tensor]
) -> None:
    term, dense = siblings
    guess = {m: soft[m] for m in term.variables[: term.siblings]}
    others = {m: to_matrix(vectors[m], torch.float64) for m in term.variables[term.siblings :]}
    for place in range(term.siblings):
        listed = [guess[m] for m in term.variables[: term.siblings]]
        found = term.pair_similarity(place, listed, vectors, MODEL)
        assert torch.allclose(found, dense.soft_similarity(place, guess | others, MODEL))
