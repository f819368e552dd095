"""The counter-based stream: what it draws, and that only owner and counter decide it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_align._device import _random
from gpu_align._device._random import RandomStream

MASK = 2**64 - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The generator of Steele, Lea & Flood, from their paper's description."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_words_are_those_of_splitmix64() -> None:
    words = _random._hashed(12345, torch.tensor([0]), 1, 9)[0].tolist()
    assert [word & MASK for word in words] == splitmix64(12345, 8)


@given(seed=st.integers(0, 2**31 - 1), counter=st.integers(0, 50), size=st.integers(1, 9))
def test_owner_and_event_decide_what_is_drawn(seed: int, counter: int, size: int) -> None:
    whole = RandomStream(seed, counter).normal(torch.arange(5), size, 3, dtype=torch.float64)
    owners = torch.tensor([3, 3, 0])
    part = RandomStream(seed, counter).normal(owners, size, 3, dtype=torch.float64)
    assert torch.equal(part, whole[owners])
    later = RandomStream(seed, counter + 1).normal(torch.arange(5), size, 3, dtype=torch.float64)
    assert not torch.equal(later, whole)


def test_chunks_change_nothing() -> None:
    """Five owners need several chunks of words, of which each one alone needs a single one."""
    owners, count = torch.arange(5), _random._CHUNK["cpu"] + 7
    together = RandomStream(1).normal(owners, count, dtype=torch.float32)
    for owner, draw in zip(owners, together, strict=True):
        alone = RandomStream(1).normal(owner[None], count, dtype=torch.float32)
        assert torch.equal(draw, alone[0])


def test_events_count_up_by_one_for_each_draw() -> None:
    stream, owners = RandomStream(0), torch.arange(2)
    stream.uniform(owners, 3)
    stream.normal(owners, 3, dtype=torch.float32)
    stream.permutation(owners, 3)
    stream.below(4, owners)
    assert stream.counter == 4


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_uniform_moments(seed: int) -> None:
    draw = RandomStream(seed).uniform(torch.arange(100), 2000)
    assert 0 <= float(draw.min()) < 1e-4
    assert 1 - 1e-4 < float(draw.max()) < 1
    slack = 5 / math.sqrt(draw.numel())
    assert float(draw.mean()) == pytest.approx(0.5, abs=slack / math.sqrt(12))
    assert float(draw.var()) == pytest.approx(1 / 12, abs=slack / 5)
    # Neither neighbours in a row nor owners of neighbouring rows are related.
    centred = draw - 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert float((a * b).mean()) == pytest.approx(0, abs=slack / 12)


@pytest.mark.parametrize("seed", [0, 7])
def test_normal_moments(seed: int) -> None:
    draw = RandomStream(seed).normal(torch.arange(100), 2001, dtype=torch.float64)
    slack = 5 / math.sqrt(draw.numel())
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        expected = pytest.approx(moment, abs=slack * math.sqrt(variance))
        assert float((draw**power).mean()) == expected
    # The two halves of Box and Muller's pairs are independent.
    one, other = draw[:, :1000], draw[:, 1001:2001]
    assert float((one * other).mean()) == pytest.approx(0, abs=2 * slack)
    assert float((one**2 * other**2).mean()) == pytest.approx(1, abs=8 * slack)


def test_permutations_are_uniform() -> None:
    drawn = RandomStream(5).permutation(torch.arange(12000), 3)
    assert torch.equal(drawn.sort(1).values, torch.arange(3).expand(12000, 3))
    counts = torch.stack([(drawn == torch.tensor(p)).all(1).sum() for p in PERMUTATIONS])
    assert float(((counts - 2000.0) ** 2 / 2000).sum()) < 20.5  # chi squared of 5, p = 0.001


PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def test_integers_are_below_the_bound() -> None:
    drawn = RandomStream(3).below(7, torch.arange(7000))
    counts = torch.bincount(drawn, minlength=7)
    assert len(counts) == 7
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 22.5  # chi squared of 6, p = 0.001
