"""Why alignment does not help: each cause alone is named, with its number, and nothing else is."""

import math
from dataclasses import replace

import pytest
import torch
from networks import mlp
from torch import nn

from gpu_align import InputError, Permutation, discover
from gpu_align._align import Model
from gpu_align._merge import Judge, LossCurve, Trio
from gpu_align._merge._diagnosis import (
    ClassGap,
    Facts,
    class_gap,
    diagnose,
    facts_of,
    guessing,
)
from gpu_align._merge._plane import Axes
from gpu_align._network import Data, Examples

FINE = Facts(
    before=2.0,
    after=0.05,
    error=0.01,
    losses=(0.1, 0.12),
    guessing=math.log(10),
    narrowest=("P_0", 512),
    scale=("fc.weight", 1.1),
    gap=ClassGap(3, 0.95, 0.97),
    distances=(400.0, 200.0),
)
STUCK = replace(FINE, after=1.5)


def test_nothing_is_said_where_alignment_helps() -> None:
    assert diagnose(FINE) == ()
    # However many causes there might be.
    assert diagnose(replace(FINE, narrowest=("P_0", 4), scale=("w", 9.0))) == ()
    # Nor where no barrier can be told from chance.
    assert diagnose(replace(FINE, before=0.01, after=0.009, error=0.01)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"narrowest": ("layer.P_3", 16)}, ["Narrow", "layer.P_3", "16 units"]),
        ({"losses": (2.1, 2.2)}, ["Under-trained", "2.1", "2.2", "2.303"]),
        ({"losses": (0.1, 3.5)}, ["Other task", "B has a loss of 3.5", "35 times"]),
        ({"losses": (3.5, 0.1)}, ["Other task", "A has a loss of 3.5", "35 times"]),
        ({"gap": ClassGap(7, 0.98, 0.02)}, ["class 7", "A has 98.0 %", "B 2.0 %"]),
        ({"scale": ("c1.weight", 3.1)}, ["Scale", "c1.weight of A", "3.1 times"]),
        ({"scale": ("c1.weight", 0.25)}, ["Scale", "c1.weight of B", "4 times"]),
        ({"after": 2.5}, ["Distance", "400 to 200", "rose from 2 to 2.5"]),
    ],
)
def test_each_cause_is_named_with_its_number(change: dict[str, object], words: list[str]) -> None:
    [sentence] = diagnose(replace(STUCK, **change))  # type: ignore[arg-type]
    for word in words:
        assert word in sentence


def test_without_a_known_cause_that_is_said() -> None:
    [sentence] = diagnose(STUCK)
    assert "1.5 of a barrier of 2" in sentence
    assert "none of those" in sentence


def test_statistics_are_named_though_alignment_helps() -> None:
    [sentence] = diagnose(replace(FINE, with_old_statistics=0.9))
    assert "0.9" in sentence
    assert "0.05" in sentence
    assert diagnose(replace(FINE, with_old_statistics=0.06)) == ()


def test_guessing_is_the_loss_of_the_frequencies() -> None:
    x = torch.zeros(8, 2)
    even = Examples.of(x, torch.tensor([0, 1, 2, 3] * 2))
    assert guessing(even) == pytest.approx(math.log(4))
    skewed = Examples.of(x, torch.tensor([0] * 6 + [1] * 2))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert guessing(skewed) == pytest.approx(entropy)
    ignored = Examples.of(x, torch.tensor([0] * 4 + [-100] * 4))
    assert guessing(ignored) == 0
    assert guessing(Examples.of(x, torch.zeros(8))) is None


def test_facts_are_measured_on_the_networks() -> None:
    """A tells all classes, B always says 0; B's second layer is four times as large."""
    x = torch.eye(3).repeat(20, 1)
    y = torch.arange(3).repeat(20)
    model = mlp([3, 5, 3])
    first = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    first["0.weight"][:3] = torch.eye(3)
    first["2.weight"][:, :3] = torch.eye(3)
    second = {k: v.clone() for k, v in first.items()}
    second["2.weight"] *= 4
    second["2.bias"][0] = 9
    part = Examples.of(x, y)
    judge = Judge.of(Model(model, x[:2]), Data(part, part), device="cpu")
    trio = Trio.of(first, second, judge.model, Permutation.identity(discover(model, x[:2])))
    found = class_gap(judge, trio)
    assert found is not None
    assert (found.first, found.second) == (1.0, 0.0)
    assert found.number in (1, 2)
    scores = [judge.score(state) for state in (first, first, second)]
    curve = LossCurve.of([0, 0.5, 1], scores, aligned=True, reestimated=False)
    facts = facts_of(curve, curve, None, trio, judge)
    assert facts.scale == ("2.weight", pytest.approx(1 / 4))
    assert facts.narrowest is not None
    assert facts.narrowest[1] == 5
    assert facts.guessing == pytest.approx(math.log(3))
    assert facts.losses == (scores[0].loss, scores[2].loss)
    assert facts.distances is None


def test_networks_of_two_architectures_are_refused() -> None:
    x = torch.zeros(4, 3)
    model, other = mlp([3, 5, 3]), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    identity = Permutation.identity(discover(other, x))
    with pytest.raises(InputError, match=r"'0\.weight' has shape"):
        Trio.of(model, other, Model(model, x), identity)


def test_networks_on_a_line_have_no_plane() -> None:
    states = [{"w": torch.tensor([t, 2 * t])} for t in (0.0, 1.0, 3.0)]
    assert Axes.of(states, ["w"]) is None
    states[2]["w"] = torch.tensor([3.0, 5.0])
    assert Axes.of(states, ["w"]) is not None
