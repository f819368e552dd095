"""Costs of assignment problems: drawn ones of six kinds, and those of trained layers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import CASES
from bench.pairs import PAIRS, load_pair
from gpu_align import AlignmentProblem, CoordinateDescent, chain_spec, run_search

KINDS = ("uniform", "aligned", "planted", "dead units", "trained-like", "rank one")
TRAINED_PAIR = "mnist_mlp_512x3"
TRAINED = "trained, layer "
"""Kind of a layer of that pair, before the layer's number."""

SHUFFLED = 0.1
"""Share of the units of the other layers that each hypothesis of a trained layer has shuffled."""


@dataclass(frozen=True)
class Task:
    """One batch of problems.

    Attributes:
        kind: of `KINDS`, or a trained layer.
        n: rows.
        batch: problems.
        network: that has such groups, or nothing.
    """

    kind: str
    n: int
    batch: int
    network: str = ""

    def cost(self, device: str) -> Tensor:
        """Draw the costs [b, n, n], float32, the same in every run on a device."""
        torch.manual_seed(self.n)
        if self.kind.startswith(TRAINED):
            return trained_cost(int(self.kind.removeprefix(TRAINED)), self.batch).to(device)
        return make_cost(self.kind, self.batch, self.n, device)


def device_tasks(quick: bool) -> Iterator[Task]:
    """Yield what is measured beside a device, the most wanted first."""
    if load_pair(TRAINED_PAIR) is None:
        print(f"no trained layers: {PAIRS} names no folder of checkpoints")
    else:
        yield from (Task(f"{TRAINED}{layer}", 512, 128) for layer in (1, 2, 3))
    kinds = ("aligned", "trained-like") if quick else KINDS
    yield from (Task(kind, 512, 128) for kind in kinds)
    yield Task("aligned", 32, 100_000)
    yield Task("uniform", 300, 208)
    yield Task("aligned", 8192, 1)
    if not quick:
        yield from (Task(kind, 1024, 128) for kind in kinds)
        yield Task("trained-like", 8192, 1)
        yield Task("aligned", 16384, 1)


def host_tasks() -> Iterator[Task]:
    """Yield what is measured where there is no device."""
    for n in (32, 128, 512):
        yield from (Task(kind, n, 16) for kind in KINDS)
        yield Task("aligned", n, 1)
    for case in CASES:
        n = max(n for n, _ in case.groups)
        count = Counter(n for n, _ in case.groups)[n] * case.batch
        if n <= 512:
            yield Task("trained-like", n, min(count, 2**22 // n**2), case.name)


def make_cost(kind: str, batch: int, n: int, device: str) -> Tensor:
    """Return costs [b, n, n] of one of `KINDS`.

    All but two are minus the products of the rows of two networks: independent normal rows
    (aligned); the same rows in another order with noise (planted); rows of which a fifth is zero
    (dead units); rows of very different norms that share an eighth of their directions, a tenth
    of them nearly zero (trained-like). Rank one is a product of two positive vectors with noise
    of 2 %, as activations have it.
    """
    a, b = torch.randn(2, batch, n, n, device=device)
    if kind == "uniform":
        return torch.rand(batch, n, n, device=device)
    if kind == "rank one":
        return 0.02 * a - torch.rand_like(a[:, :, :1]) * torch.rand_like(a[:, :1])
    if kind == "planted":
        b = a[:, torch.randperm(n, device=device)] + 0.5 * b
    if kind == "dead units":
        a, b = (x * (torch.rand(batch, n, 1, device=device) > 0.2) for x in (a, b))
    if kind == "trained-like":
        shared = torch.randn(batch, n // 8, n, device=device)
        a, b = (_trained_like(x, shared) for x in (a, b))
    return -(a @ b.mT)


def _trained_like(noise: Tensor, shared: Tensor) -> Tensor:
    rows = torch.randn_like(noise[..., : shared.shape[1]]) @ shared / shared.shape[1] ** 0.5
    norms = torch.randn_like(noise[..., :1]).exp()
    alive = torch.rand_like(norms) > 0.1
    return (rows + 0.5 * noise) * norms * torch.where(alive, 1.0, 1e-3)


def trained_cost(layer: int, batch: int) -> Tensor:
    """Return what weight matching has to assign in a layer of the trained pair, [b, n, n].

    The other layers are where one descent ends, a tenth of their units shuffled, anew for each
    problem.

    Raises:
        AssertionError: there is no such pair.
    """
    pair = load_pair(TRAINED_PAIR)
    assert pair is not None, f"{PAIRS} names no folder with {TRAINED_PAIR}"
    problem = AlignmentProblem(*pair, chain_spec(pair[1]))
    found = run_search(CoordinateDescent(), problem).best
    perms = {group: _shuffled(perm[0], batch) for group, perm in found.perms.items()}
    model = torch.zeros(batch, dtype=torch.int64)
    return -problem.similarity(problem.order[layer - 1], perms, model)


def _shuffled(perm: Tensor, batch: int) -> Tensor:
    """Return copies of an index vector, some places of each shuffled, [n] -> [b, n]."""
    places = torch.rand(batch, len(perm)).argsort(1)[:, : int(SHUFFLED * len(perm))]
    copies = perm.expand(batch, -1)
    return copies.scatter(1, places, copies.gather(1, places.roll(1, 1)))
