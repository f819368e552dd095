"""Means of networks whose units are in one order: weighted, and along the great circle."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gpu_align._errors import InputError, bullet_list
from gpu_align._symmetry import PermutationSpec, StateDict

_PARALLEL = 1 - 1e-6
"""Cosine from which two tensors have one direction, or opposite ones: no circle is told by them."""
Combine = Callable[[Sequence[Tensor]], Tensor]


def average(
    states: Sequence[StateDict],
    weights: Sequence[float] | None = None,
    spec: PermutationSpec | None = None,
) -> dict[str, Tensor]:
    """Return the weighted mean of networks, tensor by tensor.

    What is not floating point (counts, tables of numbers) is that of the first network; where all
    agree the entry is theirs bit for bit, so that infinite entries of a mask stay.

    Args:
        states: of one architecture; align them first. Running statistics are averaged too.
        weights: a number for each, not negative; divided by their sum. Default: all alike.
        spec: whose ties say which names share a tensor. Names that share one in the first network
            share their mean in any case.

    Returns:
        The names of the first in their order, in its dtypes and on its devices, computed in float64
        and rounded once; new tensors.

    Raises:
        InputError: there are no networks, their names or shapes differ, or the weights are none;
            its child SpecError: they do not fit the spec.
    """
    check_alike(states, spec)
    shares = shares_of(weights, len(states))

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        first = tensors[0]
        total = torch.zeros_like(first)
        for share, other in zip(shares[1:], tensors[1:], strict=True):
            # Differences from the first, so that equal networks are not rounded.
            total += share * torch.where(other == first, 0.0, other - first)
        return first + total

    return _each(states, spec, mean)


def slerp(
    first: StateDict, second: StateDict, at: float, spec: PermutationSpec | None = None
) -> dict[str, Tensor]:
    """Return what lies between two networks on the great circle through each pair of tensors.

        sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,  cos(w) = <a, b> / (|a| |b|)

    The straight line is taken where the two are nearly parallel or opposite, or one is zero.

    Args:
        first, second: of one architecture; align them first.
        at: t, 0 for the first, 1 for the second.
        spec, and what is returned and raised: as for `average`.

    Source: Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985), section 3.3.
    """
    check_alike([first, second], spec)
    if not math.isfinite(at):
        raise InputError(f"expected a finite number between two networks, got at={at!r}")

    def between(tensors: Sequence[Tensor]) -> Tensor:
        a, b = tensors
        cosine = float((a.conj() * b).sum().real / (a.norm() * b.norm()))
        if abs(cosine) < _PARALLEL:  # false of a NaN, which a zero gives
            angle = math.acos(cosine)
            return (math.sin((1 - at) * angle) * a + math.sin(at * angle) * b) / math.sin(angle)
        return b.clone() if at == 1 else a + at * torch.where(a == b, 0.0, b - a)

    return _each([first, second], spec, between)


def check_alike(states: Sequence[StateDict], spec: PermutationSpec | None = None) -> None:
    """Check that networks have the same names and shapes.

    Raises:
        InputError: there are none, or they differ; SpecError: they do not fit the spec.
    """
    if not states:
        raise InputError("expected at least one network, got none; pass a list of state dicts")
    for number, state in enumerate(states):
        if spec is not None:
            spec.validate(state, f"network {number}")
        problems = list(_differences(states[0], state))
        if problems:
            raise InputError(
                f"network {number} is not of the architecture of network 0; merge networks of one "
                f"architecture:\n{bullet_list(problems)}"
            )


def _differences(first: StateDict, other: StateDict) -> Iterator[str]:
    yield from (f"missing: {name!r}" for name in first if name not in other)
    yield from (f"unexpected: {name!r}" for name in other if name not in first)
    for name in first:
        if name in other and first[name].shape != other[name].shape:
            shapes = list(other[name].shape), list(first[name].shape)
            yield f"{name!r} has shape {shapes[0]}, expected {shapes[1]}"


def shares_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights divided by their sum."""
    if weights is None:
        return [1 / count] * count
    numbers = [float(weight) for weight in weights]
    total = math.fsum(numbers)
    if len(numbers) != count or min(numbers) < 0 or not 0 < total < math.inf:
        raise InputError(
            f"expected {count} weights, none negative and not all zero, got {numbers}; pass one "
            "number for each network"
        )
    return [number / total for number in numbers]


def _each(
    states: Sequence[StateDict], spec: PermutationSpec | None, combine: Combine
) -> dict[str, Tensor]:
    """Combine the tensors of each name; names that share a tensor share the result."""
    ties: Mapping[str, str] = {} if spec is None else spec.ties
    done: dict[object, Tensor] = {}
    result = {}
    for name, tensor in states[0].items():
        kept = states[0].get(ties.get(name, name), tensor)
        memory = kept.device, kept.data_ptr(), kept.shape, kept.stride(), kept.dtype
        key: object = memory if kept.numel() else name
        if key not in done:
            done[key] = _combined([state[name] for state in states], combine)
        result[name] = done[key]
    return result


def _combined(tensors: Sequence[Tensor], combine: Combine) -> Tensor:
    """Combine tensors in double precision; what is not floating point is that of the first."""
    first = tensors[0].detach()
    if not first.dtype.is_floating_point and not first.dtype.is_complex:
        return first.clone()
    wide = torch.complex128 if first.dtype.is_complex else torch.float64
    return combine([t.detach().to(first.device, wide) for t in tensors]).to(first.dtype)
