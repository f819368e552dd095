"""Weight matching in the plain way, with NumPy and SciPy alone: the first entry of the benchmark.

As a user would write it from the paper (Ainsworth et al., Git Re-Basin, ICLR 2023, algorithm 1),
with the spec as its only help. Groups inside others and their parents, and signs, stay as they are.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bench.instances.instance import Instance
from bench.instances.layout import Order, moved_along, moves


def weight_matching(instance: Instance, seed: int, tell: Callable[[Order], None]) -> Order:
    """Descend from the identity, groups in random order, until a sweep changes nothing.

    Args:
        instance: what is aligned.
        seed: of the order of the groups.
        tell: called with the order after every sweep.
    """
    parents = {group.parent for group in instance.groups.values()}
    plain = [n for n, g in instance.groups.items() if g.parent is None and n not in parents]
    recurrent = {name for name in plain if _reads_itself(instance, name)}
    order, rng, improved = instance.identity(), np.random.default_rng(seed), True
    while improved:
        improved = False
        for name in rng.permutation(plain):
            alike = _similarity(instance, order, name)
            columns = linear_sum_assignment(alike, maximize=True)[1]
            rows = np.arange(len(columns))
            old, new = alike[rows, order.perms[name]].sum(), alike[rows, columns].sum()
            moved = replace(order, perms={**order.perms, name: columns})
            # Of a group that reads itself the similarity is a linearisation, which may mislead.
            is_sure = name not in recurrent or instance.value(moved) < instance.value(order)
            if new > old + 1e-7 * abs(old) and is_sure:
                order, improved = moved, True
        tell(order)
    return order


def _similarity(instance: Instance, order: Order, name: str) -> NDArray:
    """Return how alike units of target and source are, [n, n], the other groups in their order."""
    size = instance.groups[name].size
    alike = np.zeros((size, size))
    still = replace(order, perms={**order.perms, name: np.arange(size)})
    for tensor, axes in instance.spec["tensors"].items():
        if tensor in instance.spec["buffers"]:
            continue
        for number, axis in enumerate(axes):
            if not (where := _places(axis, still, name)):
                continue
            source = instance.source[tensor]
            for other, along in enumerate(axes):
                source = moved_along(source, other, along, still if other == number else order)
            a, b = (np.take(each, where, axis=number) for each in (instance.target[tensor], source))
            a, b = (np.moveaxis(each, number, 0).reshape(size, -1) for each in (a, b))
            alike += a @ b.T
    return alike


def _reads_itself(instance: Instance, name: str) -> bool:
    """Whether a group lies on several axes of one tensor, as in a recurrent layer."""
    still = instance.identity()
    for axes in instance.spec["tensors"].values():
        if sum(bool(_places(axis, still, name)) for axis in axes) > 1:
            return True
    return False


def _places(axis: Any, still: Order, name: str) -> list[list[int]]:
    """Return the places of each unit of a group along an axis, [n][k]; empty without any."""
    where: list[list[int]] = [[] for _ in range(still.groups[name].size)]
    for place, (_, _, chosen) in enumerate(moves(axis, still, {})):
        if name in chosen:
            where[chosen[name]].append(place)
    return where if where[0] else []


def timed(instance: Instance, seed: int = 0) -> tuple[Order, list[tuple[float, float]]]:
    """Return the order found, and after every sweep the CPU seconds and the distance."""
    events, started, spent = [], time.process_time(), 0.0

    def tell(order: Order) -> None:
        nonlocal spent
        now = time.process_time()
        events.append((now - started - spent, instance.value(order)))
        spent += time.process_time() - now  # for the distance, which the search does not need

    return weight_matching(instance, seed, tell), events
