"""Several threads of the caller: each finds what one alone finds, and nothing stays changed."""

import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import CNN, mlp, randomised
from torch import nn

from gpu_align import CoordinateDescent, align, discover, load_checkpoint

THREADS = 8


def side_by_side(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Run tasks in threads that begin together, and return what they return."""
    ready = threading.Barrier(THREADS, timeout=60)

    def run(share: list[Callable[[], Any]]) -> list[Any]:
        ready.wait()
        return [task() for task in share]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(run, [tasks[n::THREADS] for n in range(THREADS)]))
    return [found[n % THREADS][n // THREADS] for n in range(len(tasks))]


@pytest.fixture(autouse=True)
def nothing_stays_changed() -> Any:
    threads, filters = torch.get_num_threads(), list(warnings.filters)
    yield
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads
    assert list(warnings.filters) == filters


@pytest.mark.slow
def test_state_dicts() -> None:
    states = [randomised(mlp([6, 8, 8, 3]), seed).state_dict() for seed in range(40)]
    tasks = [lambda s=s: align(s, states[0], search=CoordinateDescent(2)) for s in states]
    alone = [task() for task in tasks]
    for one, other in zip(alone, side_by_side(tasks), strict=True):
        assert one.distance == other.distance
        assert one.lower_bound == other.lower_bound
        for name, perm in one.permutation.perms.items():
            assert torch.equal(perm, other.permutation.perms[name])


def test_modules_and_one_target_for_all() -> None:
    target, inputs = randomised(mlp([6, 8, 3])).train(), torch.randn(2, 6).double()
    sources = [randomised(mlp([6, 8, 3]), seed) for seed in range(1, 5)]
    before = copy.deepcopy(target.state_dict())

    def one(source: nn.Module) -> Any:
        return align(source, target, example_inputs=inputs, search=CoordinateDescent(1))

    tasks = [lambda s=s: one(s) for s in sources]
    alone = [task() for task in tasks]
    for first, second in zip(alone, side_by_side(tasks), strict=True):
        assert first.function_preserved
        assert second.function_preserved
        assert first.distance == second.distance
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert target.training


@pytest.mark.slow
def test_discovery_of_one_module_and_of_many() -> None:
    shared = randomised(mlp([6, 8, 3]))
    models = [shared] * 8 + [randomised(mlp([6, width, 3])) for width in range(2, 10)]
    found = side_by_side([lambda m=m: discover(m, torch.randn(2, 6).double()) for m in models])
    sizes = [[group.size for group in spec.groups.values()] for spec in found]
    assert sizes == [[8]] * 8 + [[width] for width in range(2, 10)]


@pytest.mark.slow
def test_small_and_large_models_take_turns() -> None:
    small, large = randomised(mlp([6, 8, 3])), randomised(CNN(64, 512))
    pairs = [(small, torch.randn(2, 6).double()), (large, torch.randn(2, 1, 28, 28).double())] * 4
    specs = [discover(model, inputs, verify=False) for model, inputs in pairs[:2]] * 4

    def one(number: int) -> float:
        state = pairs[number][0].state_dict()
        moved = {name: 2 * tensor for name, tensor in state.items()}
        search = CoordinateDescent(1)
        return align(moved, state, spec=specs[number], search=search).distance

    alone = [one(number) for number in (0, 1)] * 4
    assert side_by_side([lambda n=n: one(n) for n in range(8)]) == alone


def test_checkpoints(tmp_path: Path) -> None:
    for number in range(16):
        torch.save({"w": torch.full((2,), float(number))}, tmp_path / f"{number}.pt")
    tasks = [lambda n=n: load_checkpoint(tmp_path / f"{n}.pt").tensors["w"][0] for n in range(16)]
    assert [int(value) for value in side_by_side(tasks)] == list(range(16))
