"""Weights of any scale are aligned alike, and distances are in the units of the weights."""

import math

import pytest
import torch
from marks import each_once, slow

from gpu_align import (
    METRICS,
    AlignmentProblem,
    CheckpointError,
    CoordinateDescent,
    Permutation,
    Status,
    align,
    chain_spec,
    lower_bound,
    run_search,
)

Network = dict[str, torch.Tensor]


def network(seed: int, dtype: torch.dtype) -> Network:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (12, 6), "0.bias": (12,), "2.weight": (9, 12), "4.weight": (4, 9)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def planted(dtype: torch.dtype) -> tuple[Network, Network, Permutation]:
    """Return a source, a target near it in another order, and that order."""
    source, noise = network(0, dtype), network(1, dtype)
    spec = chain_spec(source)
    order = Permutation.random(spec, generator=torch.Generator().manual_seed(2))
    moved = order.apply(source)
    target = {name: tensor + 0.1 * noise[name] for name, tensor in moved.items()}
    return source, target, order


def times(state: Network, exponent: int) -> Network:
    half = exponent // 2
    return {n: t * 2.0**half * 2.0 ** (exponent - half) for n, t in state.items()}


FLOAT32, FLOAT64 = torch.float32, torch.float64
EXPONENTS = [
    *((FLOAT32, e) for e in (-120, -84, -41, -3, 41, 63, 100, 125)),
    *((FLOAT64, e) for e in (-990, -664, -300, 41, 300, 500)),
]


@pytest.mark.parametrize("search", slow([None, CoordinateDescent()], but=[None]))
@pytest.mark.parametrize("scale", slow(EXPONENTS, but=EXPONENTS[::2]))
def test_any_scale_gives_the_answer_of_one(
    scale: tuple[torch.dtype, int], search: CoordinateDescent | None
) -> None:
    dtype, exponent = scale
    source, target, order = planted(dtype)
    plain = align(source, target, search=search)
    scaled = align(times(source, exponent), times(target, exponent), search=search)
    assert plain.status is scaled.status is not Status.TRIVIAL
    for name, perm in order.perms.items():
        assert torch.equal(plain.permutation.perms[name], scaled.permutation.perms[name])
        assert search is not None or torch.equal(scaled.permutation.perms[name], perm)

    def in_units(value: float) -> float:
        return math.ldexp(value, 2 * exponent)

    assert scaled.distance == pytest.approx(in_units(plain.distance), rel=1e-6, abs=0)
    assert scaled.distance_before == pytest.approx(in_units(plain.distance_before), rel=1e-6, abs=0)
    assert scaled.lower_bound == pytest.approx(in_units(plain.lower_bound), rel=1e-6, abs=0)
    steps = zip(plain.history, scaled.history, strict=True)
    for one, other in steps:
        assert other.best_distance == pytest.approx(in_units(one.best_distance), rel=1e-4, abs=0)
    for one, other in zip(plain.groups, scaled.groups, strict=True):
        assert other.primal == pytest.approx(in_units(one.primal), rel=1e-6, abs=0)
        assert other.distance_after == pytest.approx(in_units(one.distance_after), rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("metric", "scale"),
    each_once(sorted(METRICS), [(FLOAT32, -84), (FLOAT64, -664), (FLOAT64, 500)]),
)
def test_every_metric_finds_the_order(metric: str, scale: tuple[torch.dtype, int]) -> None:
    """Without the biases, which `row` leaves as they are: huge ones outweigh all rows."""
    dtype, exponent = scale
    source, target, order = planted(dtype)
    del source["0.bias"], target["0.bias"]
    result = align(times(source, exponent), times(target, exponent), metric=metric)
    for name, perm in order.perms.items():
        assert torch.equal(result.permutation.perms[name], perm)


def test_squares_beyond_float64_are_refused() -> None:
    source, target, _ = planted(FLOAT64)
    with pytest.raises(CheckpointError, match="scale both networks down"):
        align(times(source, 700), times(target, 700))


def test_equal_networks_are_trivial_at_any_scale() -> None:
    source, _, _ = planted(FLOAT64)
    tiny = times(source, -700)
    assert align(tiny, tiny).status is Status.TRIVIAL


def test_a_problem_of_zeros() -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in network(0, FLOAT32).items()}
    result = align(zeros, zeros)
    assert result.distance == 0
    assert result.status is Status.TRIVIAL


def test_the_problem_itself_is_in_units_of_its_own() -> None:
    source, target, order = planted(FLOAT32)
    problem = AlignmentProblem(times(source, -84), times(target, -84), order.spec)
    outcome = run_search(CoordinateDescent(), problem)
    found = problem.permutation(outcome.best)
    distance = problem.distance(found)
    assert math.log2(problem.unit) == pytest.approx(-168, abs=12)
    assert problem.unit * float(outcome.best.objective) == pytest.approx(distance, rel=1e-4, abs=0)
    assert float(lower_bound(problem)) <= distance
    assert sum(problem.tensor_distances(found).values()) == pytest.approx(distance, rel=1e-9, abs=0)


def test_evidence_is_given_in_the_units_of_the_weights() -> None:
    source, target, order = planted(FLOAT64)
    name = next(iter(order.perms))
    extra = torch.randn(12, 12, generator=torch.Generator().manual_seed(4), dtype=FLOAT64)
    found = []
    for exponent in (0, -84):
        evidence = {name: extra * 2.0 ** (2 * exponent)}
        states = times(source, exponent), times(target, exponent)
        problem = AlignmentProblem(*states, order.spec, evidence=evidence)
        identity = problem.identity()
        found.append(
            problem.similarities(name, identity.perms, identity.model)[name] * problem.unit
        )
    assert torch.allclose(found[0] * 2.0**-168, found[1], rtol=1e-9, atol=0)


def test_a_source_of_another_scale_changes_nothing_for_the_others() -> None:
    source, target, _ = planted(FLOAT32)
    alone = align(source, target, search=CoordinateDescent())
    others = [times(source, exponent) for exponent in (-100, 60, 100)]
    together = align([others[0], source, *others[1:]], target, search=CoordinateDescent())
    assert together[1].ok
    assert together[1].distance == alone.distance
    for name, perm in alone.permutation.perms.items():
        assert torch.equal(together[1].permutation.perms[name], perm)
