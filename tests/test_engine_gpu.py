"""Searches on a CUDA device: `pytest -m gpu`."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from networks import pair
from test_engine import KINDS, QUEUED, SEARCHES, Step, descended, float32_problem, start_cold

from gpu_align import AlignmentProblem, Annealing, CoordinateDescent, align, run_search
from gpu_align._device._backend import CPU, Engine, choose_engine
from gpu_align._device._memory import free_bytes
from gpu_align._device._random import RandomStream
from gpu_align._device._replay import Replay
from gpu_align._search import Run

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def cuda(request: pytest.FixtureRequest) -> Engine:
    pytest.importorskip("cupy")
    engine = choose_engine("cuda")
    return Engine(engine.device, kernels=request.param, waits=False, reason=engine.reason)


# One network for each search. Between them they have all that the kernels treat apart:
# convolutions, norms, signs, groups inside others, an axis that one tensor has twice.
# `test_engine.py` runs each of these searches on every network, on the host.
NETWORKS = {
    "layerwise": "heads",
    "layerwise_noise": "cnn",
    "descent": "signed_heads",
    "beam": "recurrent",
    "frank_wolfe": "groupnorm",
    "annealing": "signed",
    "recombination": "mlp",
    "portfolio": "mlp",
}


@pytest.mark.parametrize(("search", "name"), NETWORKS.items(), ids=NETWORKS)
def test_same_seed_gives_the_same_distance_as_on_the_cpu(
    cuda: Engine, search: str, name: str
) -> None:
    """The device's own kernels, order of sums and solver change no decision of a search."""
    plain, device = (
        run_search(SEARCHES[search], float32_problem(name, engine), seed=1)
        for engine in (CPU, cuda)
    )
    assert device.best.objective.is_cuda
    assert float(device.best.objective) == pytest.approx(float(plain.best.objective), rel=1e-6)
    assert device.status is plain.status


def test_rounding_ends_at_a_valid_permutation(cuda: Engine) -> None:
    """Which one depends on the solver where costs tie, so only its own distance is checked."""
    problem = float32_problem("mlp", cuda)
    outcome = run_search(SEARCHES["layerwise_rounding"], problem, seed=1)
    distance = problem.distance(problem.permutation(outcome.best))
    assert float(outcome.best.objective) == pytest.approx(distance, rel=1e-5)


# On torch's `meta` device test_engine.py shows it for every network; here every kernel is launched.
@pytest.mark.parametrize(
    ("queued", "name"), list(zip(QUEUED, itertools.cycle(KINDS), strict=False))
)
def test_nothing_waits_within_a_sweep(
    cuda: Engine,
    no_waits: Callable[[], AbstractContextManager[None]],
    queued: str,
    name: str,
) -> None:
    """What a search queues between two looks makes no call that waits, as torch itself sees."""
    step = Step(Run(float32_problem(name, cuda, models=2), RandomStream(0)))
    QUEUED[queued](step)  # compiles
    torch.cuda.synchronize()
    with no_waits():
        QUEUED[queued](step)
    step.run.executor.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_random_numbers_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    """A seed means the same search on both."""
    owners = torch.arange(5)
    here, there = RandomStream(3), RandomStream(3)
    assert torch.equal(here.words(owners, 999), there.words(owners.cuda(), 999).cpu())
    draws = (
        here.normal(owners, 31, 33, dtype=dtype),
        there.normal(owners.cuda(), 31, 33, dtype=dtype),
    )
    torch.testing.assert_close(draws[0], draws[1].cpu(), rtol=1e-6, atol=1e-7)
    assert torch.equal(here.permutation(owners, 50), there.permutation(owners.cuda(), 50).cpu())


def test_annealing_replayed_as_a_graph_is_the_same(
    cuda: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step as a captured graph computes what it does call by call."""
    search, objectives = Annealing(starts=3), []
    problem = float32_problem("mlp", cuda)
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(Replay, "_captured", lambda self: None)
        objectives.append(run_search(search, problem, seed=2).hypotheses.objective)
    torch.testing.assert_close(*objectives, rtol=1e-6, atol=0)


def test_a_graph_is_captured_and_reads_what_changes() -> None:
    """A replayed graph is really captured, and not frozen at the values it was captured with."""
    total, step = torch.zeros((), device="cuda"), torch.ones((), device="cuda")

    def add() -> None:
        total.add_(step)

    replay = Replay(add, total.device)
    for value in range(6):
        step.fill_(value)
        replay()
    assert replay._graph is not None
    assert float(total) == 15


def test_warm_starts_change_no_answer(cuda: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assignments that start from old duals lead to the same distances as those from nothing."""
    objectives = [descended(cuda)]
    start_cold(monkeypatch)
    objectives.append(descended(cuda))
    torch.testing.assert_close(*objectives, rtol=1e-6, atol=0)


def test_float64_is_computed_on_the_device(cuda: Engine) -> None:
    """No float32 kernel takes part in it."""
    networks = pair("mlp")
    problems = [
        AlignmentProblem(networks.source, networks.target, networks.spec, engine=engine)
        for engine in (CPU, cuda)
    ]
    plain, device = (run_search(CoordinateDescent(), problem) for problem in problems)
    assert float(device.best.objective) == pytest.approx(float(plain.best.objective), rel=1e-9)


def test_align_ends_with_the_certificate_of_the_cpu() -> None:
    """The whole way, from state dicts on the host back to the host."""
    pytest.importorskip("cupy")
    networks = pair("mlp")
    source, target = (
        {name: t.float() for name, t in state.items()}
        for state in (networks.source, networks.target)
    )
    results = [
        align(source, target, spec=networks.spec, device=device) for device in ("cpu", "cuda")
    ]
    assert results[1].device.startswith("cuda")
    assert results[1].distance == pytest.approx(results[0].distance, rel=1e-6)
    assert results[1].lower_bound == pytest.approx(results[0].lower_bound)
    assert all(tensor.device.type == "cpu" for tensor in results[1].state_dict.values())


def test_free_memory_is_that_of_the_device() -> None:
    """Batches are cut to the device's memory, not the host's."""
    free = free_bytes(torch.device("cuda"))
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_networks_on_the_device_are_aligned_and_stay_there(device: str) -> None:
    """Modules on the device are traced and aligned by either engine; the result is there too."""
    pytest.importorskip("cupy")

    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        linear = torch.nn.Linear
        return torch.nn.Sequential(linear(8, 16), torch.nn.ReLU(), linear(16, 4))

    here = align(make(1), make(2), example_inputs=torch.randn(3, 8), device="cpu")
    source, target = make(1).cuda(), make(2).cuda()
    inputs = torch.randn(3, 8, device="cuda")
    there = align(source, target, example_inputs=inputs, device=device)
    assert there.distance == pytest.approx(here.distance, rel=1e-6)
    assert there.function_preserved
    assert all(tensor.is_cuda for tensor in there.state_dict.values())
    listed = align([source, make(3).cuda()], target, example_inputs=inputs, device=device)
    assert listed[0].distance == pytest.approx(here.distance, rel=1e-6)
