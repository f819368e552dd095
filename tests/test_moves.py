"""What a descent notes of its moves on the device, against the same in torch; and whole sweeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow
from test_engine import EMULATED, float32_problem
from torch import Tensor
from triton_devices import DEVICES, INTERPRETED

pytest.importorskip("triton")

from gpu_align._device._backend import CPU
from gpu_align._device._random import RandomStream
from gpu_align._problem import Hypotheses, index_of, picked
from gpu_align._problem._signed import with_sign
from gpu_align._search import Run
from gpu_align._search._descent import draw_order, queue_sweep, start_descent
from gpu_align.kernels.moves import Accept, Batch, Move, Select

on_the_host = pytest.mark.skipif(not INTERPRETED, reason="compiled in this process")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def random_move(
    seed: int, batch: int, size: int, groups: int, signed: bool, device: torch.device
) -> tuple[Move, Tensor]:
    """Return a move whose hypotheses are active at random, and assignments."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def perms() -> Tensor:
        return uniform(batch, size).argsort(1)

    active = torch.where(uniform(batch) < 0.7, size, 0)
    note = Batch(
        objective=uniform(batch).double().to(device),
        tolerance=(0.2 * uniform(batch)).double().to(device),
        stale=(uniform(batch, groups) < 0.3).to(torch.uint8).to(device),
        active=active.to(device),
        code=torch.zeros(1, dtype=torch.int64, device=device),
    )
    perm = perms()
    signs = with_sign(perm, uniform(batch, size) < 0.5)
    neighbours = torch.arange(groups)[uniform(groups) < 0.5]
    move = Move(
        batch=note,
        similarity=(uniform(batch, size, size) - 0.5).to(device),
        signed=(uniform(batch, size, size) - 0.5).to(device) if signed else None,
        perm=perm.to(device),
        signed_perm=signs.to(device) if signed else None,
        col_dual=torch.full((batch, size), torch.nan, dtype=torch.float64, device=device),
        neighbours=neighbours.to(device),
    )
    return move, perms().to(device)


def copied(value: Batch | Move) -> Batch | Move:
    found = {
        name: copied(x) if isinstance(x, Batch) else None if x is None else x.clone()
        for name, x in vars(value).items()
    }
    return type(value)(**found)


def accepted(move: Move, col: Tensor, dual: Tensor) -> None:
    """Do what `Accept` does in torch."""
    batch = move.batch
    gain = picked(move.similarity, col) - picked(move.similarity, move.perm)
    if move.signed is not None:
        signs = with_sign(col, move.signed.gather(2, col[..., None])[..., 0] < 0)
        gain += picked(move.signed, signs) - picked(move.signed, move.signed_perm)
    wanted = batch.active > 0
    better = wanted & (2 * gain > batch.tolerance)
    batch.objective[better] -= 2 * gain[better]
    move.perm[better] = col[better]
    if move.signed is not None:
        move.signed_perm[better] = signs[better]
    move.col_dual[wanted] = dual[wanted]
    batch.stale[better.nonzero(), move.neighbours] = 1


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize("size", [1, 32, 33, 257, 1030])
def test_a_move_is_accepted_where_it_gains(size: int, signed: bool, device: torch.device) -> None:
    batch = 7 if size < 1000 else 2
    move, col = random_move(size, batch, size, 5, signed, device)
    expected = copied(move)
    dual = torch.rand(batch, size, device=device).double()
    Accept(move).launch(col, dual, torch.zeros(batch, dtype=torch.int64, device=device))
    accepted(expected, col, dual)
    for name in ("perm", "signed_perm", "col_dual"):
        if getattr(move, name) is not None:
            torch.testing.assert_close(
                getattr(move, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True
            )
    assert torch.equal(move.batch.stale, expected.batch.stale)
    torch.testing.assert_close(move.batch.objective, expected.batch.objective)
    if signed:
        assert torch.equal(index_of(move.signed_perm), index_of(expected.signed_perm))


def test_codes_of_what_was_not_wanted_are_left_out(device: torch.device) -> None:
    move, col = random_move(0, 6, 9, 2, False, device)
    move.batch.active.copy_(torch.tensor([9, 0, 9, 0, 9, 9]))
    dual = torch.zeros(6, 9, dtype=torch.float64, device=device)
    Accept(move).launch(col, dual, torch.tensor([0, 4, 2, 4, 1, 0], device=device))
    assert int(move.batch.code) == 2


@on_the_host
@given(seed=st.integers(0, 1000), batch=st.integers(1, 300), groups=st.integers(1, 4))
def test_who_is_chosen_and_stale_is_active(seed: int, batch: int, groups: int) -> None:
    move, _ = random_move(seed, batch, 3, groups, False, torch.device("cpu"))
    chosen = (torch.rand(batch) < 0.5).to(torch.uint8)
    number, before = seed % groups, move.batch.stale.clone()
    Select(move.batch).launch(chosen, number, 3)
    wanted = chosen.bool() & before[:, number].bool()
    assert torch.equal(move.batch.active, 3 * wanted.long())
    before[chosen.bool(), number] = 0
    assert torch.equal(move.batch.stale, before)


def swept(problem_engine: object, name: str, sweeps: int) -> Hypotheses:
    """Return four random hypotheses after some sweeps."""
    problem = float32_problem(name, problem_engine, models=2)
    run = Run(problem, RandomStream(3))
    descent = start_descent(run, problem.random(2, run.random))
    for _ in range(sweeps):
        descent = queue_sweep(run, descent, draw_order(run, 2, "random"))
        descent = replace(descent, alive=descent.stale.any(1).cpu())
        run.executor.check()
    exact = problem.objective(descent.hypotheses.perms, descent.hypotheses.model)
    torch.testing.assert_close(descent.hypotheses.objective, exact, rtol=1e-6, atol=1e-4)
    return descent.hypotheses


@on_the_host
@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("name", slow(["cnn", "heads", "signed", "recurrent"], but=["signed"]))
def test_prepared_sweeps_are_those_of_the_host(name: str) -> None:
    plain, prepared = (swept(engine, name, sweeps=2) for engine in (CPU, EMULATED))
    torch.testing.assert_close(prepared.objective, plain.objective, rtol=1e-6, atol=1e-4)


@on_the_host
@pytest.mark.usefixtures("auction_on_host")
def test_moves_in_parts_are_the_same_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = swept(EMULATED, "signed", sweeps=1)
    monkeypatch.setenv("GPU_ALIGN_MEMORY", "1")
    parts = swept(EMULATED, "signed", sweeps=1)
    for matrix, perm in whole.perms.items():
        assert torch.equal(perm, parts.perms[matrix])


@on_the_host
@pytest.mark.usefixtures("auction_on_host")
def test_an_interrupted_sweep_leaves_the_batch_before_it() -> None:
    problem = float32_problem("mlp", EMULATED)
    run = Run(problem, RandomStream(0))
    descent = start_descent(run, problem.random(2, run.random))
    order = draw_order(run, 2, "random")
    kept = {matrix: perm.clone() for matrix, perm in descent.hypotheses.perms.items()}
    after = queue_sweep(run, descent, order)
    first = after.hypotheses.objective.clone()
    queue_sweep(run, replace(after, alive=torch.ones(2, dtype=torch.bool)), order)
    assert all(torch.equal(perm, kept[m]) for m, perm in descent.hypotheses.perms.items())
    assert bool(descent.stale.all())
    assert torch.equal(after.hypotheses.objective, first)
