"""Doubly stochastic matrices: Sinkhorn, the line search of Frank-Wolfe, rounding, breeding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import pair
from strategies import seeds
from test_problem import problem_of

from gpu_align import FrankWolfe, Recombination, Status, run_search
from gpu_align._problem import Hypotheses
from gpu_align._search import Run, _recombination
from gpu_align._search._frank_wolfe import maximize_polynomial
from gpu_align._search._relaxed import sinkhorn, soft_starts, to_hypotheses

GRID = torch.linspace(0, 1, 10_001, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 63])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_sinkhorn_sums(size: int, scale: float) -> None:
    logits = scale * torch.randn(3, size, size, dtype=torch.float64)
    matrix = sinkhorn(logits.clone(), 500)
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(1), torch.ones(3, size, dtype=torch.float64))
    assert torch.allclose(matrix.sum(2), torch.ones(3, size, dtype=torch.float64), atol=1e-2)


@pytest.mark.parametrize("iterations", [1, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_sinkhorn_of_extreme_logits_is_finite(
    scale: float, dtype: torch.dtype, iterations: int
) -> None:
    logits = scale * torch.randn(4, 17, 17, dtype=dtype)
    matrix = sinkhorn(logits.clone(), iterations)
    assert torch.isfinite(matrix).all()
    assert torch.allclose(matrix.sum(1), torch.ones(4, 17, dtype=dtype), atol=1e-4)


def test_sinkhorn_keeps_its_argument_and_is_equivariant() -> None:
    logits = torch.randn(2, 5, 5, dtype=torch.float64)
    before, order = logits.clone(), torch.randperm(5)
    matrix = sinkhorn(logits, 20)
    assert torch.equal(logits, before)
    assert torch.allclose(sinkhorn(logits[:, order], 20), matrix[:, order])
    shifted = logits + torch.randn(2, 5, 1) + torch.randn(2, 1, 5)
    assert torch.allclose(sinkhorn(shifted, 400), sinkhorn(logits, 400), atol=1e-6)


@given(
    degree=st.integers(1, 4),
    coefficients=st.lists(st.floats(-10, 10), min_size=5, max_size=5),
    lead=st.sampled_from([1.0, 1e-6, 1e-13, 0.0]),
)
def test_line_search_beats_a_dense_grid(
    degree: int, coefficients: list[float], lead: float
) -> None:
    weights = torch.tensor(coefficients[: degree + 1], dtype=torch.float64)
    weights[-1] *= lead
    powers = torch.arange(degree + 1)
    nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64)

    def height(points: torch.Tensor) -> torch.Tensor:
        return (points[:, None] ** powers * weights).sum(1)

    step = maximize_polynomial(nodes, height(nodes)[None])
    assert 0 <= float(step) <= 1
    slack = 1e-9 * (1 + float(weights.abs().max()))
    assert float(height(step)) >= float(height(GRID).max()) - slack


@given(degree=st.integers(1, 4), seed=seeds)
def test_line_search_is_batched(degree: int, seed: int) -> None:
    values = torch.randn(
        6, degree + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    nodes = torch.linspace(0, 1, degree + 1, dtype=torch.float64)
    together = maximize_polynomial(nodes, values)
    alone = torch.cat([maximize_polynomial(nodes, value[None]) for value in values])
    assert torch.allclose(together, alone)


@pytest.mark.parametrize("name", ["shallow", "mlp", "groupnorm", "recurrent", "trilinear"])
def test_frank_wolfe_never_falls(name: str) -> None:
    problem = problem_of(pair(name))
    run = Run(problem, torch.Generator().manual_seed(0))
    search = FrankWolfe(starts=3)
    state, heights = search.init(run, None), []
    for _ in range(5):
        heights.append(state.memory.objective)
        state = search.step(run, state)
        if not hasattr(state.memory, "soft"):
            break
        for matrix in state.memory.soft.values():
            assert torch.allclose(matrix.sum(1), torch.ones_like(matrix[:, 0]), atol=1e-4)
            assert torch.allclose(matrix.sum(2), torch.ones_like(matrix[:, 0]), atol=1e-4)
        assert (state.memory.objective >= heights[-1] - 1e-9).all()


def test_frank_wolfe_of_one_group_is_exact() -> None:
    problem = problem_of(pair("shallow"))
    outcome = run_search(FrankWolfe(), problem)
    best = problem.random(500, torch.Generator().manual_seed(0)).objective.min()
    assert outcome.status is Status.CONVERGED
    assert float(outcome.best.objective) <= float(best) + 1e-9


def test_starts_are_doubly_stochastic_and_distinct() -> None:
    problem = problem_of(pair("mlp"))
    run = Run(problem, torch.Generator().manual_seed(0))
    soft = soft_starts(run, 3, noise=1.0, exact_first=True)
    for group, matrix in soft.items():
        size = problem.sizes[group]
        assert torch.allclose(matrix.sum(1), torch.ones(3, size, dtype=matrix.dtype))
        assert torch.allclose(matrix[0], torch.full_like(matrix[0], 1 / size))
        assert not torch.allclose(matrix[1], matrix[2])


def test_rounding_of_permutation_matrices_gives_them_back() -> None:
    problem = problem_of(pair("resnet"))
    run = Run(problem, torch.Generator().manual_seed(0))
    batch = problem.random(4, run.generator)
    soft = {
        group: 0.7 * torch.nn.functional.one_hot(perm).double() + 0.3 / problem.sizes[group]
        for group, perm in batch.perms.items()
    }
    rounded = to_hypotheses(run, soft, batch.model)
    for group, perm in rounded.perms.items():
        assert torch.equal(perm, batch.perms[group])
    assert torch.allclose(rounded.objective, batch.objective)


@pytest.mark.parametrize("given", [True, False], ids=["start", "no_start"])
@pytest.mark.parametrize("generations", [1, 3])
def test_recombination_breeds_as_many_generations_as_asked(
    generations: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, born = problem_of(pair("deep")), []

    def counted(*arguments: object) -> Hypotheses:
        born.append(arguments)
        return to_hypotheses(*arguments)

    monkeypatch.setattr(_recombination, "to_hypotheses", counted)
    start = problem.random(4, torch.Generator().manual_seed(0)) if given else None
    run_search(Recombination(4, 4, generations), problem, start=start)
    assert len(born) == generations
