"""A portfolio that drops settled models: what they have found stays, the others go on alone."""

from dataclasses import replace

import torch
from zoos import State, planted, state

from gpu_align import AlignmentProblem, Annealing, BeamDescent, Portfolio, chain_spec, run_search
from gpu_align._problem import Hypotheses

WIDTHS = (8, 20, 20, 20, 4)


def rough(seed: int) -> State:
    """Return a network on which no two searches agree."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator) for n, t in state(0, *WIDTHS).items()}


REFERENCE = rough(0)
SEARCH = Portfolio((Annealing(2), Annealing(3)), (BeamDescent(2, patience=1, rounds=3),), width=4)


def problem() -> AlignmentProblem:
    """Return one of six models, of which every other one is hidden in plain sight."""
    _, moved = planted(3, REFERENCE, noise=0.001)
    others = [rough(number) for number in range(1, 4)]
    mixed = [one for pair in zip(moved, others, strict=True) for one in pair]
    return AlignmentProblem(mixed, REFERENCE, chain_spec(REFERENCE))


def test_settled_models_keep_what_they_have_found() -> None:
    form = problem()
    whole = run_search(SEARCH, form).best
    found = run_search(replace(SEARCH, drops_settled=True), form)
    settled = torch.tensor([0, 2, 4])
    for name, perm in found.best.perms.items():
        assert torch.equal(perm[settled], whole.perms[name][settled])
    again = form.hypotheses(found.best.perms, found.best.model)
    torch.testing.assert_close(again.objective, found.best.objective, rtol=1e-5, atol=1e-5)
    identity = form.identity().objective
    assert bool((found.best.objective < identity).all())
    assert found.best.model.tolist() == list(range(6))


def test_fewer_assignments_are_solved() -> None:
    form = problem()
    whole = run_search(SEARCH, form)
    found = run_search(replace(SEARCH, drops_settled=True), form)
    assert found.assignments < whole.assignments


def test_a_search_whose_models_do_not_settle_is_the_same() -> None:
    sources = [rough(number) for number in range(1, 4)]
    form = AlignmentProblem(sources, REFERENCE, chain_spec(REFERENCE))
    whole = run_search(SEARCH, form).best
    found = run_search(replace(SEARCH, drops_settled=True), form).best
    assert all(torch.equal(perm, whole.perms[name]) for name, perm in found.perms.items())


def test_hypotheses_of_some_models_and_back() -> None:
    form = problem()
    each = form.identity(2)
    marked = replace(each, lineage=torch.arange(len(each)))
    some: Hypotheses = marked.of_models(torch.tensor([1, 4]))
    assert some.models == 2
    assert some.model.tolist() == [0, 0, 1, 1]
    assert some.lineage.tolist() == [2, 3, 8, 9]
    turned = replace(some, perms={name: perm.flip(1) for name, perm in some.perms.items()})
    back = marked.with_models(torch.tensor([1, 4]), turned)
    assert back.model.tolist() == each.model.tolist()
    for name, perm in back.perms.items():
        assert torch.equal(perm[[2, 3, 8, 9]], turned.perms[name])
        assert torch.equal(perm[[0, 1, 4, 11]], each.perms[name][[0, 1, 4, 11]])


def test_the_problem_of_some_sources() -> None:
    form = problem()
    some = form.of_sources([3, 0])
    assert some.models == 2
    assert torch.equal(some.constant, form.constant[[3, 0]])
    for name, unary in some.unary.items():
        assert torch.equal(unary, form.unary[name][[3, 0]])
