"""The device's way of searching, proved without a device.

A search on a device keeps everything there and reads nothing back within a sweep. Here it runs on
two stand-ins. On torch's `meta` device tensors have no values, so whatever looks at one fails. On
the CPU the Triton kernels run in their interpreter and the assignment kernels as built for the
host, so the answers can be compared with those of the plain way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from marks import each_once
from networks import pair
from search_oracles import AtIdentity
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from triton_devices import INTERPRETED

from gpu_align import (
    AlignmentProblem,
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    KBest,
    LayerwiseBeam,
    Learned,
    Noise,
    Portfolio,
    Recombination,
    Rounding,
    Search,
    UnavailableError,
    run_search,
)
from gpu_align._assignment import (
    AbstractAssignmentSolver,
    AssignmentProblem,
    AssignmentSolution,
    AuctionAssignment,
    AuctionResult,
)
from gpu_align._device._backend import CPU, Engine, choose_engine
from gpu_align._device._random import RandomStream
from gpu_align._search import Run
from gpu_align._search._annealing_step import AnnealingState, AnnealingStep
from gpu_align._search._beam import perturb
from gpu_align._search._descent import draw_order, queue_sweep, start_descent
from gpu_align._search._relaxed import soft_starts, to_hypotheses
from gpu_align._search._workspace import Workspace

KINDS = ("mlp", "cnn", "resnet", "groupnorm", "recurrent", "heads", "gqa", "signed", "signed_heads")
META = Engine(torch.device("meta"), waits=False)
EMULATED = Engine(kernels=True, waits=False)

SEARCHES: dict[str, Search] = {
    "layerwise": LayerwiseBeam(width=4, candidates=KBest(3), lookahead=True),
    "layerwise_noise": LayerwiseBeam(width=4, candidates=Noise(5)),
    "layerwise_rounding": LayerwiseBeam(width=4, candidates=Rounding(5)),
    "descent": CoordinateDescent(starts=3, initial="random"),
    "beam": BeamDescent(patience=2),
    "frank_wolfe": FrankWolfe(starts=3),
    "annealing": Annealing(starts=3),
    "recombination": Recombination(population=4, children=4, generations=2),
    "learned": Learned(AtIdentity(), then=CoordinateDescent()),
    "portfolio": Portfolio(
        (LayerwiseBeam(lookahead=True), CoordinateDescent(), Annealing(starts=2)),
        (Recombination(4, 4, 2), BeamDescent(patience=2)),
    ),
}


class OneDevice(TorchDispatchMode):
    """Fails where an operation mixes devices, which CUDA refuses and `meta` sometimes allows.

    Attributes:
        seen: number of operations on tensors of `meta`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        self.seen += "meta" in devices
        copies = func._overloadpacket._qualified_op_name in ("aten::_to_copy", "aten::copy_")
        assert len(devices) < 2 or copies, f"{func} of tensors on {devices}"
        return func(*args, **(kwargs or {}))


@dataclass
class Step:
    """A problem on the `meta` device with a batch of hypotheses and soft matrices."""

    run: Run

    def __post_init__(self) -> None:
        self.batch = self.run.problem.random(3, self.run.random)
        self.owners = torch.arange(2, device=self.run.problem.device)
        self.soft = soft_starts(self.run, self.owners, 1.0, exact_first=True)
        self.model = self.run.problem.model_index(2)


def _sweep(step: Step) -> None:
    order = draw_order(step.run, step.batch.each, "random")
    queue_sweep(step.run, start_descent(step.run, step.batch), order)


def _perturb(step: Step) -> None:
    for group in step.run.problem.order:
        perturb(step.run, step.batch, group, torch.tensor([0, 2]), 0.2)


def _anneal(step: Step) -> None:
    annealing = AnnealingStep(step.run, AnnealingState(step.soft, step.model), 0.5, 5)
    annealing.take(0.3, step.run.heartbeat)
    annealing.take(0.2, step.run.heartbeat)


def _steps_of(search: Search, steps: int = 1) -> Callable[[Step], None]:
    def take(step: Step) -> None:
        state = search.init(step.run, None)
        for _ in range(steps):
            state = search.step(step.run, state)

    return take


QUEUED: dict[str, Callable[[Step], None]] = {
    "sweep": _sweep,
    "perturb": _perturb,
    "anneal": _anneal,
    "round": lambda step: to_hypotheses(step.run, step.soft, step.model),
    "best": lambda step: step.batch.best(2),
    "objective": lambda step: step.run.problem.soft_value(step.soft, step.model),
    "frank_wolfe": lambda step: FrankWolfe(starts=2).relax(
        step.run, FrankWolfe(starts=2).begin(step.run, step.owners), 0
    ),
    "breed": lambda step: Recombination(4, 4, 1, steps=2, iterations=2)._breed(
        step.run, step.batch
    ),
    "layerwise_greedy": _steps_of(LayerwiseBeam(lookahead=True)),
    "layerwise_noise": _steps_of(LayerwiseBeam(3, Noise(4), rule="incoming")),
    "layerwise_rounding": _steps_of(LayerwiseBeam(3, Rounding(4), row_distance="euclidean")),
    "annealing": _steps_of(Annealing(starts=3, steps=3, iterations=2), steps=3),
}


class Shapes(AbstractAssignmentSolver):
    """Queues nothing; what it returns is of the right shape."""

    name = "shapes"

    def solve(self, problem: AssignmentProblem) -> AssignmentSolution:
        raise AssertionError("the host was asked to solve")

    def device_solver(self) -> "Shapes":
        return self

    def enqueue(self, problem: AssignmentProblem) -> AuctionResult:
        cost = problem.cost
        number, index = (cost.new_empty(len(cost), dtype=t) for t in (torch.float64, torch.int64))
        dual = cost.new_empty(cost.shape[:2], dtype=torch.float64)
        return AuctionResult(
            col_ind=cost.new_empty(cost.shape[:2], dtype=torch.int64),
            row_dual=dual,
            col_dual=dual,
            objective=number,
            duality_gap=number,
            status_codes=index,
            stats=index,
        )


def on_meta(name: str) -> Step:
    """Return a problem without values."""
    networks = pair(name)
    sources = [networks.source, networks.target]
    problem = AlignmentProblem(sources, networks.target, networks.spec, engine=META)
    return Step(Run(problem, RandomStream(0), Shapes()))


@pytest.mark.parametrize(
    ("queued", "name"), each_once(QUEUED, KINDS, but=("groupnorm", "recurrent", "signed_heads"))
)
def test_nothing_is_read_back_within_a_sweep(queued: str, name: str) -> None:
    step = on_meta(name)
    with OneDevice() as watched:
        QUEUED[queued](step)
    assert watched.seen > 3


def test_a_look_at_a_value_would_be_noticed() -> None:
    step = on_meta("mlp")
    with pytest.raises((RuntimeError, NotImplementedError)), OneDevice():
        bool(step.batch.objective.any())
    with pytest.raises(AssertionError, match="of tensors on"), OneDevice():
        step.batch.objective.gather(0, torch.tensor([0]))


def float32_problem(name: str, engine: Engine, models: int = 1) -> AlignmentProblem:
    networks = pair(name)
    sources = [networks.source, *(pair(name, seed=5 + m).source for m in range(1, models))]
    return AlignmentProblem(
        sources, networks.target, networks.spec, engine=engine, dtype=torch.float32
    )


def assert_same_distance(search: Search, name: str, engine: Engine) -> None:
    plain, queued = (run_search(search, float32_problem(name, e), seed=1) for e in (CPU, engine))
    assert float(queued.best.objective) == pytest.approx(float(plain.best.objective), rel=1e-6)
    assert queued.status is plain.status


# Where rounded costs tie it is the solver's order that decides, and two solvers differ.
@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize(
    ("search", "name"),
    each_once(
        [name for name in SEARCHES if name != "layerwise_rounding"],
        KINDS,
        but=("mlp", "heads", "signed"),
    ),
)
def test_the_devices_way_finds_what_the_cpu_finds(search: str, name: str) -> None:
    assert_same_distance(SEARCHES[search], name, replace(EMULATED, kernels=False))


@pytest.mark.skipif(not INTERPRETED, reason="compiled in this process")
@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize(
    ("search", "name"),
    each_once(["layerwise", "descent", "annealing"], ["signed", "heads", "mlp"]),
)
def test_the_kernels_find_what_torch_finds(search: str, name: str) -> None:
    pytest.importorskip("triton")
    chosen = {
        "layerwise": LayerwiseBeam(lookahead=True),
        "descent": CoordinateDescent(),
        "annealing": Annealing(starts=1, steps=4, hot=0.2),
    }[search]
    assert_same_distance(chosen, name, EMULATED)


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("search", ["descent", "beam", "annealing", "recombination", "portfolio"])
def test_several_models_on_the_devices_way(search: str) -> None:
    engine = replace(EMULATED, kernels=False)
    plain, queued = (
        run_search(SEARCHES[search], float32_problem("mlp", e, models=3), seed=2).best.objective
        for e in (CPU, engine)
    )
    assert torch.allclose(plain, queued, rtol=1e-6)


def descended(engine: Engine) -> Tensor:
    """Return the objectives of four descents."""
    search = CoordinateDescent(starts=4, initial="random")
    return run_search(search, float32_problem("mlp", engine), seed=4).hypotheses.objective


def start_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sweep forget the duals of the one before."""
    load = Workspace.load

    def forgetting(self: Workspace, *given: Any) -> None:
        self.forget()
        load(self, *given)

    monkeypatch.setattr(Workspace, "load", forgetting)


@pytest.mark.skipif(not INTERPRETED, reason="compiled in this process")
@pytest.mark.usefixtures("auction_on_host")
def test_warm_starts_change_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from gpu_align.kernels.auction import Auction, AuctionResult

    warm, launch = [], Auction.launch

    def watched(self: Auction) -> AuctionResult:
        _, sizes, dual, _ = self._held
        warm.append(bool(dual[sizes > 0].isfinite().any()))
        return launch(self)

    monkeypatch.setattr(Auction, "launch", watched)
    objectives = [descended(EMULATED)]
    assert any(warm)
    warm.clear()
    start_cold(monkeypatch)
    objectives.append(descended(EMULATED))
    assert not any(warm)
    torch.testing.assert_close(*objectives, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("auction_on_host")
def test_a_failed_assignment_is_an_error_between_sweeps() -> None:
    problem = float32_problem("mlp", replace(EMULATED, kernels=False))
    run = Run(problem, RandomStream(0), solver=AuctionAssignment(max_rounds=1))
    run.assign(torch.rand(2, 40, 40))
    with pytest.raises(Exception, match="rounds"):
        run.executor.check()


def test_an_explicit_device_is_never_replaced() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UnavailableError, match="cuda"):
        choose_engine("cuda")
    engine = choose_engine("auto")
    assert engine.device.type == "cpu"
    assert "cuda cannot be used" in engine.reason
    assert choose_engine("cpu") == CPU
