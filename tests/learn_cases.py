"""Specs with known spaces of equivariant maps, and what the maps are compared with."""

import functools
import math
import warnings
from functools import partial

import architectures
import numpy as np
import sequence_architectures as sequence
import torch
from networks import PAIRS, mlp, pair
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, chain_spec, discover
from gpu_align.learn import Features, WeightSpace


def chain(*widths: int) -> PermutationSpec:
    """Return the spec of a perceptron read from its names alone, so without signs."""
    return chain_spec(mlp(widths).state_dict())


def written(groups: str, tensors: str) -> PermutationSpec:
    head = '{"format": "gpu-align/spec", "version": 2, '
    return PermutationSpec.from_json(f'{head}"groups": {{{groups}}}, "tensors": {{{tensors}}}}}')


def tanh() -> PermutationSpec:
    """2-3-3-1 with tanh: units may be negated."""
    return discover(mlp([2, 3, 3, 1], nn.Tanh).double(), torch.ones(2, 2, dtype=torch.float64))


def residual() -> PermutationSpec:
    """A layer between the units of one residual stream."""
    return written('"d": 3', '"w": ["d", "d"], "b": ["d"], "out": [2, "d"]')


def attention() -> PermutationSpec:
    """Two heads of two dimensions on a stream of three."""
    inside = '{"size": 2, "parent": "h"}'
    qk, v = '[{"product": ["h", "qk"]}, "d"]', '[{"product": ["h", "v"]}, "d"]'
    return written(
        f'"d": 3, "h": 2, "qk": {inside}, "v": {inside}',
        f'"q": {qk}, "k": {qk}, "v": {v}, "o": ["d", {{"product": ["h", "v"]}}], '
        '"b": [{"product": ["h", "qk"]}]',
    )


def convolutions() -> PermutationSpec:
    """Two convolutions of width 2 and a layer that reads two places of each channel."""
    return written(
        '"a": 3, "b": 2',
        '"w1": ["a", 1, 2], "b1": ["a"], "w2": ["b", "a", 2], "b2": ["b"], '
        '"out": [2, {"product": ["b", 2]}]',
    )


def concatenation() -> PermutationSpec:
    return written(
        '"a": 2, "b": 3, "c": 2',
        '"wa": ["a"], "wb": ["b"], "w": ["c", {"concat": ["a", "b"]}], "bc": ["c"]',
    )


ARCHITECTURES = [
    *("dense_net", "u_net", "inception", "se_resnet", "group_norm_resnet", "autoencoder"),
    *("depthwise_separable", "resnext", "grouped_chain", "mlp_mixer", "siren"),
]
"""All of tests/architectures.py that have less than 10,000 parameters."""

SEQUENCES = {
    "lstm": sequence.lstm,
    "projected_lstm": sequence.projected_lstm,
    "self_attention": sequence.self_attention,
    "cross_attention": partial(sequence.cross_attention, 6),
    "packed_vit": partial(sequence.packed_vit, False),
    "transformer_encoder": partial(sequence.transformer_encoder, True),
}

SPECS = [*PAIRS, *ARCHITECTURES]
"""Names for `spec_of`, as those of `SEQUENCES` are."""


@functools.cache
def spec_of(name: str) -> PermutationSpec:
    if name in PAIRS:
        return pair(name).spec
    model, inputs = SEQUENCES[name]() if name in SEQUENCES else getattr(architectures, name)()
    assert sum(parameter.numel() for parameter in model.parameters()) < 10_000
    with warnings.catch_warnings():
        # torch.export of any nn.LSTM says so about its own private list.
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        return discover(model, inputs, verify=False)


def random_states(spec: PermutationSpec, count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return networks with normal weights in float64, counts of batch norms aside."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            for name, tensor in spec.tensors.items()
        }
        for _ in range(count)
    ]


def random_features(space: WeightSpace, count: int, channels: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(count, *c.sizes, c.fixed * channels, generator=generator, dtype=torch.float64)
        for c in space.cells
    )


def relative_error(got: Features, expected: Features) -> float:
    """Return the largest difference relative to the largest value of all."""
    scale = max(float(y.detach().abs().max()) for y in expected)
    assert scale > 0
    pairs = zip(got, expected, strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs) / scale


def flat(states: dict[str, Tensor], spec: PermutationSpec) -> Tensor:
    """Return the parameters of a stack as [b, all]."""
    names = [name for name, tensor in spec.tensors.items() if tensor.counted]
    return torch.cat([states[name].flatten(1) for name in names], 1)


def entries(spec: PermutationSpec) -> dict[str, Tensor]:
    """Return a stack of networks, each of which has one parameter 1 and all others 0."""
    shapes = {name: tensor.shape for name, tensor in spec.tensors.items()}
    sizes = {n: math.prod(shapes[n]) if t.counted else 0 for n, t in spec.tensors.items()}
    count, start, stack = sum(sizes.values()), 0, {}
    for name, shape in shapes.items():
        stack[name] = torch.zeros(count, *shape, dtype=torch.float64)
        for number in range(sizes[name]):
            stack[name][start + number].view(-1)[number] = 1
        start += sizes[name]
    return stack


def orbits(spec: PermutationSpec) -> tuple[int, int]:
    """Count the orbits of the symmetries on pairs of entries and on entries.

    Orbits in which an entry is met with both signs are left out: no map is constant on them. They
    are found as parts of a graph in which every pair occurs with either sign: such an orbit is one
    part of it, any other two.
    """
    images = [_image(spec, element) for element in _generators(spec)]
    return _count(images, pairs=True), _count(images, pairs=False)


def _count(images: list[tuple[np.ndarray, np.ndarray]], *, pairs: bool) -> int:
    edges, signed = [], []
    for place, sign in images:
        if pairs:
            count = len(place)
            sign = (sign[:, None] * sign[None]).ravel()
            place = (place[:, None] * count + place[None]).ravel()
        number = np.arange(len(place))
        edges.append(np.stack([number, place]))
        for start in (0, 1):  # the pair, and the pair negated
            end = start ^ (sign < 0)
            signed.append(np.stack([2 * number + start, 2 * place + end]))
    nodes = len(place)
    return _parts(signed, 2 * nodes) - _parts(edges, nodes)


def _parts(edges: list[np.ndarray], nodes: int) -> int:
    rows, columns = np.concatenate(edges, 1)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    return int(connected_components(graph, directed=False)[0])


def _image(spec: PermutationSpec, element: Permutation) -> tuple[np.ndarray, np.ndarray]:
    """Return to which entry each entry goes, and with which sign."""
    numbered, start = {}, 1
    for name, tensor in spec.tensors.items():
        count = math.prod(tensor.shape)
        numbered[name] = torch.arange(start, start + count).double().reshape(tensor.shape)
        start += count if tensor.counted else 0
    stack = {name: tensor[None] for name, tensor in element.apply(numbered).items()}
    moved = flat(stack, spec)[0].numpy().astype(int)
    place = np.empty_like(moved)
    place[np.abs(moved) - 1] = np.arange(len(moved))
    return place, np.sign(moved)[place]


def _generators(spec: PermutationSpec) -> list[Permutation]:
    """Return swaps of neighbours in every group, in each unit of a parent, and single signs."""
    still = Permutation.identity(spec)
    found = [still]
    for name, group in spec.groups.items():
        units = spec.units(name)
        for first in range(units - 1) if not group.fixed else ():
            if first // group.size == (first + 1) // group.size:
                found.append(Permutation(spec, _swapped(spec, name, first)))
        for unit in range(units) if group.signed else ():
            sign = torch.ones(units, dtype=torch.int64)
            sign[unit] = -1
            found.append(Permutation(spec, still.perms, {name: sign}))
    return found


def _swapped(spec: PermutationSpec, name: str, first: int) -> dict[str, Tensor]:
    """Return the units of a group with two neighbours swapped, what is inside them too."""
    perms = {group: torch.arange(spec.units(group)) for group in spec.groups}
    for group, perm in perms.items():
        if group == name or spec.groups[group].parent == name:
            inside = 1 if group == name else spec.groups[group].size
            perms[group] = perm.reshape(-1, inside)[_swap(len(perm) // inside, first)].flatten()
    return perms


def _swap(count: int, first: int) -> Tensor:
    order = torch.arange(count)
    order[[first, first + 1]] = order[[first + 1, first]]
    return order
