"""Whole searches on a device that holds its tensors apart from the host's."""

import pytest
import torch
from marks import each_once, slow
from networks import pair
from pretend_device import DEVICE, ENGINE, PretendDevice, solve_elsewhere
from test_engine import KINDS, SEARCHES, float32_problem

from gpu_align import (
    AlignmentResult,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    LayerwiseBeam,
    Noise,
    Portfolio,
    Recombination,
    Search,
    run_search,
)
from gpu_align._align import Settings
from gpu_align._align._many import align_state_dicts
from gpu_align._device._backend import CPU, Engine

# Few steps: each op is run in Python. The k best are found by a solver of the host's choice.
WHOLE: dict[str, Search] = {
    **{name: search for name, search in SEARCHES.items() if name != "layerwise"},
    "frank_wolfe": FrankWolfe(starts=3, steps=6),
    "annealing": Annealing(starts=2, steps=4, iterations=3),
    "recombination": Recombination(3, 2, 1, steps=2, iterations=2),
    "portfolio": Portfolio(
        (LayerwiseBeam(lookahead=True), CoordinateDescent(), Annealing(1, steps=3, iterations=2)),
        (Recombination(3, 2, 1, steps=2, iterations=2), BeamDescent(patience=1)),
        width=3,
    ),
    "lookahead": LayerwiseBeam(width=3, candidates=Noise(4), lookahead=True),
}


@pytest.fixture(autouse=True)
def solver(auction_on_host: object, monkeypatch: pytest.MonkeyPatch) -> None:
    solve_elsewhere(monkeypatch)


@pytest.mark.parametrize(("searched", "name"), each_once(WHOLE, KINDS, but=("mlp", "signed")))
def test_a_search_keeps_its_tensors_on_the_device(searched: str, name: str) -> None:
    search = WHOLE[searched]
    plain = run_search(search, float32_problem(name, CPU, models=2), seed=1)
    with PretendDevice():
        problem = float32_problem(name, ENGINE, models=2)
        found = run_search(search, problem, seed=1).best
        assert found.objective.device == DEVICE
        objective = found.objective.cpu()
        assert torch.allclose(problem.objective(found.perms, found.model).cpu(), objective)
    if search is not SEARCHES["layerwise_rounding"]:
        assert torch.allclose(objective, plain.best.objective, rtol=1e-6)


@pytest.mark.parametrize("starts", [1, 4])
def test_a_sweep_is_read_once_after_it(starts: int) -> None:
    search = CoordinateDescent(starts=starts, initial="random")
    with PretendDevice() as watched:
        problem = float32_problem("mlp", ENGINE)
        watched.reads = 0
        outcome = run_search(search, problem, seed=1)
    before = 1  # the start
    assert watched.reads == before + len(outcome.history)


@pytest.mark.parametrize("name", slow(["mlp", "heads", "signed_heads"], but=["mlp"]))
def test_align_brings_its_answer_home(name: str) -> None:
    networks = pair(name)
    sources = [networks.source, pair(name, seed=3).source]
    search = Portfolio((CoordinateDescent(),), (BeamDescent(patience=1),), width=2)

    def aligned(engine: Engine) -> list[AlignmentResult]:
        settings = Settings(search, engine=engine)
        given = (sources, networks.target, networks.spec, settings)
        return align_state_dicts(*given, models=[None, None])

    expected = aligned(CPU)
    with PretendDevice():
        results = aligned(ENGINE)
    for plain, found in zip(expected, results, strict=True):
        assert found.distance == pytest.approx(plain.distance, rel=1e-9)
        assert found.lower_bound == pytest.approx(plain.lower_bound)
        assert all(t.device.type == "cpu" for t in found.state_dict.values())
