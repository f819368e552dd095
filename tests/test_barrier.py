"""The barrier: its definition, planted copies, batch norms, and what is written of it."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import each_once
from networks import CNN, mlp, randomised
from torch import Tensor, nn
from torch.nn import functional

import gpu_align
from gpu_align import InputError, LossCurve, Permutation, align, barrier, loss_plane
from gpu_align._merge import BarrierResult
from gpu_align._merge._curve import segment_points
from gpu_align._merge._segment import between, mixed
from gpu_align._network import Data, Examples, Score

FAST: dict[str, Any] = {"search": "descent", "device": "cpu"}


class Valley(nn.Module):
    """Returns its one weight for every example, so that the loss on a segment is known."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x + self.weight[0]


def hump(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss with a hump between -1 and 2: 4 at 0, 1 at -1 and 7 at 2."""
    return (4 - 3 * outputs.mean().abs()).where(outputs.mean() < 0, 4 + 1.5 * outputs.mean())


def line(count: int = 40) -> Data:
    x = torch.zeros(count, 1, dtype=torch.float64)
    return Data(Examples.of(x, x), Examples.of(x, x))


def images(count: int = 60, side: int = 8) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, side, side, generator=generator)
    y = torch.randint(10, (count,), generator=generator)
    return Data.of((x, y))


def planted(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, nn.Module]:
    """Return a module and a copy of it with its units in another order."""
    spec = gpu_align.discover(model, inputs)
    generator = torch.Generator().manual_seed(1)
    other = copy.deepcopy(model)
    perms = {
        name: torch.randperm(group.size, generator=generator) for name, group in spec.groups.items()
    }
    other.load_state_dict(Permutation(spec, perms).apply(model.state_dict()))
    return model.eval(), other.eval()


# The definition


def test_barrier_is_the_most_above_the_line_between_the_ends() -> None:
    """On -1 + 3t the hump's top, 4, is at t = 1/3, where the line from 1 to 7 is at 3."""
    given = Permutation.identity(gpu_align.discover(Valley(0), torch.zeros(2, 1)))
    found = barrier(Valley(-1), Valley(2), line(), loss=hump, points=4, align=given)
    curve = found.curve(aligned=False)
    assert curve.points == (0, pytest.approx(1 / 3), 0.5, pytest.approx(2 / 3), 1)
    assert curve.losses == pytest.approx([1, 4, 4.75, 5.5, 7])
    assert curve.barrier == pytest.approx(1)
    assert curve.barrier_at == pytest.approx(1 / 3)
    assert curve.losses[curve.midpoint] == pytest.approx(4.75)


def test_convex_losses_have_a_barrier_of_0() -> None:
    given = Permutation.identity(gpu_align.discover(Valley(0), torch.zeros(2, 1)))
    found = barrier(Valley(-1), Valley(2), line(), loss="mse", align=given)
    assert found.barrier == found.barrier_before == 0
    assert found.curve(aligned=True).barrier_error is None
    assert found.findings == ()


def test_curve_is_that_of_networks_mixed_and_run_by_hand() -> None:
    torch.manual_seed(0)
    data = images()
    first, second = (nn.Sequential(nn.Flatten(), mlp([64, 12, 10])) for _ in range(2))
    result = align(second, first, example_inputs=data.fit.lots[0].inputs[:2], **FAST)
    found = barrier(first, second, data, align=result, points=5, device="cpu")
    x, y = data.held.lots[0].inputs, data.held.lots[0].targets
    for is_aligned, end in ((False, second.state_dict()), (True, result.state_dict)):
        curve = found.curve(aligned=is_aligned)
        for t, loss, accuracy in zip(curve.points, curve.losses, curve.accuracies, strict=True):
            probe = copy.deepcopy(first)
            start = first.state_dict()
            probe.load_state_dict({k: (1 - t) * v + t * end[k] for k, v in start.items()})
            with torch.no_grad():
                logits = probe(x)
            assert loss == pytest.approx(float(functional.cross_entropy(logits, y)), abs=1e-6)
            assert accuracy == float((logits.argmax(1) == y).double().mean())
    assert (found.part, found.examples) == ("held", len(data.held))


def test_standard_error_counts_what_the_networks_do_not_share() -> None:
    """All batches are equally far above the line, however hard each of them is."""
    hard = [1.0, 5.0, 9.0]

    def score(extra: float) -> Score:
        losses = tuple(value + extra for value in hard)
        return Score(5.0 + extra, None, None, 30, losses, (10, 10, 10))

    scores = [score(0), score(2), score(0)]
    curve = LossCurve.of([0, 0.5, 1], scores, aligned=True, reestimated=False)
    assert curve.barrier == 2
    assert curve.barrier_error == pytest.approx(0, abs=1e-12)
    assert curve.standard_errors[0] == pytest.approx(4 / math.sqrt(3))


def test_losses_that_overflow_are_an_infinite_barrier() -> None:
    scores = [Score(x, None, None, 1, (x,), (1,)) for x in (1.0, math.nan, 1.0)]
    curve = LossCurve.of([0, 0.5, 1], scores, aligned=True, reestimated=False)
    assert curve.barrier == math.inf
    assert LossCurve.from_json(json.loads(json.dumps(curve.to_json()))).barrier == math.inf


@pytest.mark.parametrize("count", [3, 4, 11, 24, 25])
def test_points_have_both_ends_and_the_middle(count: int) -> None:
    points = segment_points(count)
    assert {0.0, 0.5, 1.0} <= set(points)
    assert points == sorted(points)
    assert len(points) in (count, count + 1)


def test_ends_of_a_segment_are_the_networks_to_the_bit() -> None:
    first = {"w": torch.randn(7), "n": torch.tensor(3)}
    second = {"w": torch.randn(7), "n": torch.tensor(5)}
    for t, end in ((0.0, first), (1.0, second)):
        assert torch.equal(between(first, second, t)["w"], end["w"].double())
    assert torch.equal(between(first, first, 0.3)["w"], first["w"].double())
    assert int(between(first, second, 0.7)["n"]) == 3
    half = mixed([first, second], [0.5, 0.5])["w"]
    torch.testing.assert_close(half, (first["w"] + second["w"]).double() / 2, atol=1e-7, rtol=0)


# Planted copies


@pytest.mark.parametrize(("kind", "in_double"), each_once(["mlp", "cnn"], [False, True]))
def test_planted_copies_have_a_barrier_of_0(kind: str, in_double: bool) -> None:
    x = images().fit.lots[0].inputs
    made = {"mlp": nn.Sequential(nn.Flatten(), mlp([64, 9, 8, 10])), "cnn": CNN(3, 6, side=8)}
    first, second = planted(randomised(made[kind], 3).float(), x[:2])
    with torch.no_grad():
        y = first(x).argmax(1)  # so that both are good, and what lies between need not be
    data = Data.of((x, y), held=0.5)
    found = barrier(first, second, data, points=4, in_double=in_double, **FAST)
    assert found.has_norms == (kind == "cnn")
    assert found.distance == pytest.approx(0, abs=1e-9)
    assert found.barrier_before > 0.01
    assert all(0 <= curve.barrier <= 1e-12 for curve in found.curves if curve.aligned)
    assert found.findings == ()


# Batch norms


def test_statistics_are_those_of_the_data_at_every_point() -> None:
    """A training forward over all fitted examples measures the same mean and variance."""
    data = images(80, side=16)
    first, second = (randomised(CNN(3, 12, side=16), seed).float().eval() for seed in (0, 1))
    found = barrier(first, second, data, points=3, **FAST)
    assert [(c.aligned, c.reestimated) for c in found.curves] == list(
        map(tuple, map(reversed, itertools.product((False, True), repeat=2)))
    )
    probe = copy.deepcopy(first)
    start, end = first.state_dict(), second.state_dict()
    probe.load_state_dict({k: v if v.ndim == 0 else (v + end[k]) / 2 for k, v in start.items()})
    norms = [module for module in probe.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        probe.train()(data.fit.lots[0].inputs)
        logits = probe.eval()(data.held.lots[0].inputs)
    expected = float(functional.cross_entropy(logits, data.held.lots[0].targets))
    curve = found.curve(aligned=False)
    assert curve.reestimated
    assert curve.losses[curve.midpoint] == pytest.approx(expected, rel=1e-4)
    assert found.statistics_examples == len(data.fit)


def test_networks_are_left_as_they_were() -> None:
    data = images(40, side=16)
    first, second = (randomised(CNN(2, 6, side=16), seed).float().train() for seed in (0, 1))
    before = [copy.deepcopy(model.state_dict()) for model in (first, second)]
    barrier(first, second, data, points=3, **FAST)
    for model, state in zip((first, second), before, strict=True):
        assert model.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), name


# The plane


def test_plane_holds_the_three_networks_and_keeps_their_distances() -> None:
    torch.manual_seed(2)
    data = images()
    first, second = (nn.Sequential(nn.Flatten(), mlp([64, 12, 10])).double() for _ in range(2))
    parts = ((part.lots[0].inputs.double(), part.lots[0].targets) for part in (data.fit, data.held))
    data = Data(*(Examples.of(*part) for part in parts))
    result = align(second, first, example_inputs=data.fit.lots[0].inputs[:2], **FAST)
    plane = loss_plane(first, second, data, align=result, grid=3, device="cpu")

    def distance(one: Any, other: Any) -> float:
        return math.sqrt(sum(float((one[k] - other[k]).square().sum()) for k in one))

    states = {"A": first.state_dict(), "B": second.state_dict(), "B aligned": result.state_dict}
    for one, other in itertools.combinations(states, 2):
        between_places = math.dist(plane.places[one], plane.places[other])
        assert between_places == pytest.approx(distance(states[one], states[other]), rel=1e-9)
    assert [len(row) for row in plane.losses] == [3, 3, 3]
    assert all(min(plane.x) < x < max(plane.x) for x, _ in plane.places.values())
    # The middle of the grid, written as a sum of the three, and run by hand.
    x, y = plane.x[1], plane.y[1]
    (bx, by), (ax, _) = plane.places["B"], plane.places["B aligned"]
    third = y / by
    second_weight = (x - third * bx) / ax
    state = mixed(
        [states["A"], states["B aligned"], states["B"]],
        [1 - second_weight - third, second_weight, third],
    )
    probe = copy.deepcopy(first)
    probe.load_state_dict(state)
    with torch.no_grad():
        logits = probe(data.held.lots[0].inputs)
    expected = float(functional.cross_entropy(logits, data.held.lots[0].targets))
    assert plane.losses[1][1] == pytest.approx(expected, rel=1e-9)


def test_planted_copies_have_no_plane() -> None:
    data = images()
    inputs = data.fit.lots[0].inputs[:2]
    model = nn.Sequential(nn.Flatten(), mlp([64, 6, 10]))
    first, second = planted(model, inputs)
    found = barrier(first, second, data, points=3, plane=3, **FAST)
    assert found.plane is None
    assert "lie on one line" in found.notes[0]
    with pytest.raises(InputError, match="lie on one line"):
        loss_plane(first, second, data, grid=3, **FAST)


# What is written


@pytest.fixture(scope="module")
def found() -> BarrierResult:
    torch.manual_seed(3)
    data = images()
    first, second = (nn.Sequential(nn.Flatten(), mlp([64, 12, 10])) for _ in range(2))
    return barrier(first, second, data, points=3, plane=3, **FAST)


def test_json_gives_the_result_back(found: BarrierResult, tmp_path: Path) -> None:
    path = tmp_path / "barrier.json"
    found.save_json(path)
    document = json.loads(path.read_text())
    assert document["schema"] == "gpu-align/barrier/1"
    assert document["barrier"] == found.barrier
    assert BarrierResult.from_json(document) == found


def test_summary_has_the_naive_midpoint_beside_the_aligned_one(found: BarrierResult) -> None:
    lines = found.summary().splitlines()
    for row, text in zip(found.rows(), lines[:2], strict=True):
        assert text.startswith(row["network"])
        assert f"midpoint loss {row['loss']:.4g}" in text


def test_same_seed_same_result() -> None:
    torch.manual_seed(4)
    first, second = (nn.Sequential(nn.Flatten(), mlp([64, 6, 10])) for _ in range(2))
    results = [barrier(first, second, images(), points=3, seed=5, **FAST) for _ in range(2)]
    assert results[0].curves == results[1].curves


# Bad input


def test_bad_input_is_refused_with_what_to_do() -> None:
    torch.manual_seed(5)
    data = images()
    first, second, narrow = (
        nn.Sequential(nn.Flatten(), mlp([64, width, 10])) for width in (6, 6, 5)
    )
    with pytest.raises(InputError, match="at least 3 points"):
        barrier(first, second, data, points=2)
    with pytest.raises(InputError, match="model="):
        barrier(first.state_dict(), second.state_dict(), data)
    with pytest.raises(InputError, match="leave it out"):
        barrier(first, second, data, align="descent")  # type: ignore[arg-type]
    part = Examples.of(torch.zeros(9, 64))
    without = Data(part, part)
    with pytest.raises(InputError, match="targets"):
        barrier(first, second, without)
    given = Permutation.identity(gpu_align.discover(first, torch.zeros(2, 1, 8, 8)))
    with pytest.raises(InputError):
        barrier(first, narrow, data, align=given)
