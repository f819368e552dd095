"""The benches of searches run from end to end on small networks, timing nothing that counts."""

import numpy as np
import pytest
import torch
from marks import slow

from bench import (
    beam_width,
    count,
    large,
    many_models,
    pairs,
    portfolio,
    profile_step,
    same_seed,
    searching,
    whole,
)
from bench.plain import weight_matching
from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    KBest,
    LayerwiseBeam,
    chain_spec,
    run_search,
)
from gpu_align._device import _replay
from gpu_align._device._backend import CPU, Engine
from gpu_align.kernels import auction as launcher

TIME = {"median": 1.0, "q20": 1.0, "q80": 1.0, "repetitions": 1}


@pytest.fixture
def random_weights(monkeypatch):
    monkeypatch.delenv(pairs.PAIRS, raising=False)


SMALL = beam_width.Case("small", "coursework", lambda width: LayerwiseBeam(width, KBest(2)))


@pytest.mark.usefixtures("random_weights")
def test_beam_widths_take_turns():
    rows = beam_width.measure(SMALL, CPU, turns=2)
    assert [row["width"] for row in rows] == list(beam_width.WIDTHS)
    assert rows[0]["times_width_1"] == 1
    for row in rows:
        assert row["weights"] == "random"
        assert row["ms"]["repetitions"] == 2
        assert row["distance"] < row["before"]


@pytest.mark.usefixtures("random_weights")
def test_a_beam_that_would_take_too_long_is_left_out():
    first, *others = beam_width.measure(SMALL, CPU, limit=0.0, turns=1)
    assert "ms" in first
    assert all("expected to take more than 0 s" in row["skipped"] for row in others)
    assert all(row["skipped"] in beam_width.line(row) for row in others)


def test_the_gate_of_searches():
    source, target = pairs.random_pair("coursework")
    problem = AlignmentProblem(source, target, chain_spec(target))
    outcome = run_search(LayerwiseBeam(), problem)
    permutation, distance = searching.gate(problem, outcome)
    assert distance == problem.distance(permutation)
    outcome.best.objective.mul_(0.999)
    with pytest.raises(AssertionError, match="the distance is"):
        searching.gate(problem, outcome)
    outcome.best.perms["0"][0, 0] = outcome.best.perms["0"][0, 1]
    with pytest.raises(AssertionError, match="no permutation"):
        searching.gate(problem, outcome)


def test_a_device_has_its_own_record():
    assert searching.result_name("whole", [CPU]) == "whole_cpu"
    assert searching.result_name("whole", [CPU, CPU]) == "whole"


@pytest.mark.slow
def test_whole_alignment():
    """Both ways reach the planted permutation; without time both stop where they begin."""
    network = large.Network("small", lambda: pairs.mlp([6, 20, 20, 4]), (2, 6), published=1.0)
    rows = list(whole.rows_of(network, [CPU], limit=60.0, quick=False))
    assert [row["way"] for row in rows] == ["gpu-align", "plain"] * whole.TURNS
    for row in rows[-2:]:
        assert row["distance"] == pytest.approx(row["planted"])
        assert row["ms"]["repetitions"] == whole.TURNS
        assert not row["stopped"]
        assert "s  " in whole.line(row)
    _, source, target, spec = whole.facts_of(network)
    stopped = whole.run_plain(source, target, spec, limit=0.0, seed=0)
    assert stopped["stopped"]
    assert stopped["distance"] == rows[0]["before"]
    a, b = ({name: t.numpy() for name, t in s.items()} for s in (target, source))
    perms = weight_matching(a, b, spec, np.random.default_rng(0), seconds=0.0)
    assert all((perm == np.arange(len(perm))).all() for perm in perms.values())


def test_the_networks_of_whole_alignments():
    """Parameters as published: 25,557,032 and 272,474 with another norm's running statistics."""
    assert sum(p.numel() for p in large.resnet50().parameters()) == 25_557_032
    assert sum(p.numel() for p in large.resnet20(1).parameters()) == pytest.approx(
        272_474, rel=0.02
    )
    spec = large.Network("ResNet20", lambda: large.resnet20(1), (2, 3, 32, 32)).spec()
    assert sorted(group.size for group in spec.groups.values()) == [16] * 4 + [32] * 4 + [64] * 4


@pytest.mark.slow
def test_the_largest_network_runs_one_way_in_a_hurry():
    network = large.Network("small", lambda: pairs.mlp([6, 20, 20, 4]), (2, 6))
    (row, *_) = whole.rows_of(network, [CPU], limit=60.0, quick=True, large=100)
    assert row["way"] == "gpu-align"
    assert "planted" not in row
    problem = AlignmentProblem(*whole.make_pair(network, network.spec())[:2], network.spec())
    assert row["before"] == pytest.approx(float(problem.identity().objective[0]))


@pytest.mark.usefixtures("random_weights")
@pytest.mark.parametrize(
    "step", slow(profile_step.STEPS, but=["sweep of weight matching", "step of Annealing"])
)
def test_profile_of_a_step(step):
    limits = {"flops": 1e12, "copy": 1e12}
    row = profile_step.measure(step, "mnist_mlp_128x3", CPU, limits)
    names = [entry["operation"] for entry in row["operations"]]
    assert "aten::bmm" in names
    assert (profile_step.ASSIGNMENT in names) == ("sweep" in step)
    spent = sum(entry["self_ms"] for entry in row["operations"])
    assert spent == pytest.approx(row["profiled_ms"], rel=0.2)
    assert row["floor_ms"] == max(row["products_ms"], row["memory_ms"]) > 0


def test_the_floor_of_a_sweep():
    """Three layers, counted by hand: what both groups share is multiplied once for each."""
    source, target = pairs.random_pair("coursework")
    problem = AlignmentProblem(source, target, chain_spec(target))
    floor = profile_step.floor_of_sweep(problem, 5)
    assert floor["flops"] == 2 * 5 * (64 * 64 * 24 + 24 * 64 * 24)
    assert floor["bytes"] == 4 * (4 * 64 * 24 + 6 * 64**2 + 6 * 24**2)


def test_a_step_is_captured_before_it_is_timed():
    """A `Replay` calls its function twice, and captures it at the third call."""
    assert profile_step.WARM_UP > _replay._EAGER_CALLS + 1


def test_the_device_is_profiled_first():
    device = Engine(torch.device("cuda"))
    order = [engine for *_, engine in profile_step.jobs([CPU, device])]
    assert order == sorted(order, key=lambda engine: engine is CPU)
    assert (next(iter(profile_step.STEPS)), profile_step.LARGE, device) in profile_step.jobs(
        [CPU, device]
    )


def test_operations_of_a_sweep_are_counted():
    pytest.importorskip("triton")
    network = large.Network("small", lambda: pairs.mlp([6, 20, 40, 4]), (2, 6))
    row = count.count_sweeps(network, sweeps=2)
    kernels = row["launches"]
    assert kernels["auction_warp"] == kernels["auction_warp_64"] == 1
    assert row["operations"] > sum(kernels.values()) > 2
    assert row["reads"] >= 1
    assert "operations a sweep" in count.line(row)
    assert launcher._DEVICE == "cuda"


def test_what_counts_as_an_operation():
    """A product and a copy do; views, allocations and work on the host do not."""
    with count.Count() as counted:
        there = torch.empty(4, 4, device="meta")
        there[1:].t().unsqueeze(0)
        torch.ones(3) + 1
        assert not counted.operations
        there @ there
        torch.ones(4).to("meta")
        assert dict(counted.operations) == {"mm": 1, "_to_copy": 1}
        assert bool(there.isnan().any())
        assert int(there.long().sum()) == 0
        assert (there > 0).cpu().all()
        assert counted.reads == 3


@pytest.mark.usefixtures("random_weights", "auction_on_host")
@pytest.mark.parametrize("name", ["weight matching", "annealing", "portfolio"])
def test_same_seed(name):
    """On the device's way, here without a device, a search ends where it ends on the CPU."""
    device = Engine(waits=False)
    weights, (cpu, other) = same_seed.problems("coursework", [CPU, device])
    assert weights == "random"
    row = same_seed.compare(same_seed.SEARCHES[name], cpu, other)
    assert row["same"], row
    assert "same" in same_seed.line({"pair": "coursework", "search": name} | row)


@pytest.mark.slow
@pytest.mark.usefixtures("random_weights")
def test_default_search_on_two_engines(monkeypatch):
    """A second CPU engine stands for the device."""
    monkeypatch.setattr(portfolio, "Portfolio", SmallPortfolio)
    other = Engine(reason="another")
    *_, rows = portfolio.measure("mnist_mlp_128x3", [CPU, other], turns=2, enough=60.0)
    assert [row["ms"]["repetitions"] for row in rows] == [2, 2]
    assert rows[0]["distance"] == rows[1]["distance"]
    assert all(distance < row["before"] for row in rows for distance in row["distance"])
    assert "default search" in portfolio.line(rows[0])
    ratio = portfolio.ratio({"device": "cuda", "ms": TIME}, [{"device": "cpu", "ms": TIME}])
    assert ratio == {"times_cpu": 1.0}


class SmallPortfolio:
    @staticmethod
    def for_problem(problem):
        return CoordinateDescent()


def test_a_zoo_is_drawn_as_torch_draws_it():
    case = many_models.Case((2, 8, 1), many_models.Sine, 500, CoordinateDescent(), 1, 1)
    spec, sources, target = many_models.zoo(case)
    spec.validate(target, "target")
    assert len(sources) == 500
    for name, tensor in target.items():
        many = torch.stack([source[name] for source in sources])
        assert many.shape[1:] == tensor.shape
        bound = (2 if name[0] == "0" else 8) ** -0.5
        assert many.abs().max() <= bound
        assert many.std() == pytest.approx(bound / 3**0.5, rel=0.1)
