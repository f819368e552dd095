"""Random numbers from one counter-based stream, the same on every device.

Number i of draw c is a hash of (seed, c, i): nothing is drawn in sequence, so it does not matter
where or in what batches numbers are computed. The counter c is the whole state (Salmon et al.,
Parallel random numbers: as easy as 1, 2, 3, SC 2011).

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), with
the mixing of Stafford's variant 13; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011) for the use of counters.
"""

import math

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CHUNK = {"cpu": 2**16}  # 64-bit words hashed at once: what fits the cache
_DEVICE_CHUNK = 2**24


class RandomStream:
    """Draws for the owners of numbers; equal owners draw alike.

    Attributes:
        seed: of the stream.
        counter: number of draws made so far; with the seed it is the whole state.
    """

    def __init__(self, seed: int, counter: int = 0) -> None:
        self.seed, self.counter = seed, counter

    def uniform(self, owners: Tensor, *shape: int) -> Tensor:
        """Draw float64 in [0, 1) with 53 bits.

        Args:
            owners: int64 [c], at least 0.
            shape: of each one's numbers, fewer than 2^32.

        Returns:
            [c, *shape] on the device of `owners`.
        """
        words = self.words(owners, math.prod(shape))
        return _shifted(words, 11).double().mul_(2.0**-53).reshape(len(owners), *shape)

    def normal(self, owners: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draw standard normal numbers by the method of Box and Muller; see `uniform`."""
        count = math.prod(shape)
        out = torch.empty(len(owners), count, dtype=dtype, device=owners.device)
        half = -(-count // 2)
        start = self._start()
        chunk = _CHUNK.get(owners.device.type, _DEVICE_CHUNK)
        step = max(chunk // max(len(owners), 1), 1)
        for first in range(0, half, step):
            last = min(first + step, half)
            words = _hashed(start, owners, first, last)
            radius = _shifted(words, 32).double().add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
            angle = words.bitwise_and_(0xFFFFFFFF).double().mul_(2.0**-31 * math.pi)
            torch.mul(radius, angle.cos(), out=out[:, first:last])
            rest = min(half + last, count) - (half + first)
            place = out[:, half + first : half + first + rest]
            torch.mul(radius[:, :rest], angle[:, :rest].sin(), out=place)
        return out.reshape(len(owners), *shape)

    def permutation(self, owners: Tensor, *shape: int) -> Tensor:
        """Draw permutations of the last axis, int64 [c, *shape]; see `uniform`."""
        words = self.words(owners, math.prod(shape))
        return words.reshape(len(owners), *shape).argsort(dim=-1, stable=True)

    def below(self, high: int, owners: Tensor) -> Tensor:
        """Draw one integer from 0 to `high - 1` for each owner, int64 [c]."""
        return self.uniform(owners).mul(high).long()

    def words(self, owners: Tensor, count: int) -> Tensor:
        """Draw 64 random bits, int64 [c, count]; see `uniform`."""
        return _hashed(self._start(), owners, 0, count)

    def _start(self) -> int:
        """Begin a draw: return where its numbers begin."""
        start = _mixed(_mixed(self.seed + _GOLDEN) + self.counter * _GOLDEN)
        self.counter += 1
        return start


def _hashed(start: int, owners: Tensor, first: int, last: int) -> Tensor:
    """Return the words `first` to `last` of each owner, int64 [c, last - first]."""
    counter = torch.arange(first, last, device=owners.device)
    z = ((owners[:, None] << 32) + counter).mul_(_signed(_GOLDEN)).add_(_signed(start))
    z ^= _shifted(z, 30)
    z *= _signed(_FIRST)
    z ^= _shifted(z, 27)
    z *= _signed(_SECOND)
    z ^= _shifted(z, 31)
    return z


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (words >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _mixed(z: int) -> int:
    """Hash one word on the host."""
    z &= _MASK
    z = (z ^ z >> 30) * _FIRST & _MASK
    z = (z ^ z >> 27) * _SECOND & _MASK
    return z ^ z >> 31
