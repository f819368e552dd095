"""Hypothesis strategies: axes, specs, permutations, and random networks of supported layers."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from networks import Graph, State, mlp, randomised
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, chain_spec
from gpu_align._symmetry._axis import Axis, Factor, Fixed, Units
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._tensor_spec import TensorSpec

seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 6)

SIZES = {"g": 3, "h": 2, "one": 1}
"""The groups that `axes` draws from."""

_factors = st.one_of(
    st.integers(1, 4).map(Fixed),
    st.builds(
        lambda name, power: Units(SIZES[name], name, power),
        st.sampled_from(sorted(SIZES)),
        st.sampled_from((-1, 0, 1)),
    ),
)
axes = st.recursive(
    _factors,
    lambda parts: st.lists(
        st.lists(parts, min_size=1, max_size=3).map(tuple), min_size=2, max_size=3
    ).map(lambda segments: Axis(tuple(segments))),
    max_leaves=6,
).map(lambda part: part if isinstance(part, Axis) else Axis(((part,),)))
"""Concatenations of products of groups, fixed extents and further concatenations."""


GROUPS = {
    group.name: group
    for group in (
        *(Group("g", 3, signed=True), Group("h", 2), Group("one", 1, signed=True)),
        *(Group("p", 2), Group("c", 3, parent="p", signed=True), Group("d", 2, parent="p")),
        *(Group("lone", 1, parent="p"), Group("f", 2, fixed=True), Group("i", 3, parent="f")),
    )
}
"""The groups that `tensor_specs` draws from: plain, signed, parents, one fixed, their children."""

_CHILDREN = {
    parent: [name for name, group in GROUPS.items() if group.parent == parent]
    for parent in ("p", "f")
}


@st.composite
def _powered(draw: st.DrawFn, names: list[str]) -> Units:
    group = GROUPS[draw(st.sampled_from(names))]
    power = draw(st.sampled_from((-1, 0, 1))) if group.signed else 0
    return Units(group.size, group.name, power)


@st.composite
def _repeated(draw: st.DrawFn, factor: Factor) -> Factor | Axis:
    """The factor, or a concatenation of it and fixed places."""
    if draw(st.booleans()):
        return factor
    segments = [(factor,), (Fixed(draw(st.integers(1, 2))),)]
    return Axis(tuple(draw(st.permutations(segments))))


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    """Axes of one tensor; where children lie on it, each block has their parent exactly once.

    Either one axis has the parent in all its segments, and children lie anywhere; or children
    stand only beside their parent in the same segment of one axis.
    """
    count = draw(st.integers(1, 3))
    parent = draw(st.sampled_from(sorted(_CHILDREN)))
    with_parent = draw(st.integers(0, count - 1))
    anywhere = draw(st.booleans())
    plain = st.one_of(st.integers(1, 3).map(Fixed), _powered(["g", "h", "one"]))
    axes = []
    for number in range(count):
        segments = []
        for _ in range(draw(st.integers(1, 2))):
            others = draw(st.lists(plain, min_size=0, max_size=1))
            own = number == with_parent and (anywhere or draw(st.booleans()))
            if own or anywhere:
                others += draw(st.lists(_powered(_CHILDREN[parent]), max_size=1))
            factors = [Units(2, parent)] if own else []
            factors += [draw(_repeated(factor)) for factor in others]
            segments.append(tuple(draw(st.permutations(factors or [Fixed(2)]))))
        axes.append(Axis(tuple(segments)))
    return TensorSpec(tuple(axes))


@st.composite
def permutations(draw: st.DrawFn, spec: PermutationSpec) -> Permutation:
    """Any symmetry of a spec, signs included."""
    perms: dict[str, Tensor] = {}
    for name, group in sorted(spec.groups.items(), key=lambda item: item[1].parent is not None):
        orders = st.just(range(group.size)) if group.fixed else st.permutations(range(group.size))
        inside = orders.map(torch.tensor)
        above = [torch.tensor(0)] if group.parent is None else perms[group.parent]
        perms[name] = torch.cat([group.size * j + draw(inside) for j in above])
    signs = {
        name: torch.tensor(draw(st.lists(st.sampled_from((1, -1)), min_size=n, max_size=n)))
        for name, group in spec.groups.items()
        if (n := spec.units(name)) and group.signed
    }
    return Permutation(spec, perms, signs)


@st.composite
def tiny_pairs(draw: st.DrawFn, hidden: int = 2) -> tuple[PermutationSpec, State, State]:
    """Two networks small enough to try all permutations; small integers as weights make ties."""
    sizes = [draw(st.integers(1, 4)) for _ in range(hidden)]
    model = mlp([draw(st.integers(1, 3)), *sizes, draw(st.integers(1, 2))])
    states = []
    for _ in range(2):
        state = randomised(model, draw(seeds)).state_dict()
        if draw(st.booleans()):
            state = {name: (2 * tensor).round() for name, tensor in state.items()}
        states.append({name: tensor.clone() for name, tensor in state.items()})
    return chain_spec(states[0]), states[0], states[1]


_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.LeakyReLU, nn.PReLU, nn.Softplus)
_activations = st.sampled_from(_ACTIVATIONS).map(lambda kind: kind())


def _residual(inner: nn.Module, shortcut: nn.Module) -> Graph:
    return Graph(lambda s, x: s.inner(x) + s.shortcut(x), inner=inner, shortcut=shortcut)


@st.composite
def _blocks(
    draw: st.DrawFn, width: int, layer: Callable[[int, int], nn.Module], norms: list[nn.Module]
) -> tuple[nn.Module, int]:
    """Draw one block that maps `width` units to another number, and that number."""
    kind = draw(st.sampled_from(("layer", "activation", "norm", "identity", "projection")))
    if kind == "activation":
        return draw(st.one_of(_activations, st.just(nn.PReLU(width)), st.just(nn.Dropout()))), width
    if kind == "norm":
        return draw(st.sampled_from(norms)), width
    if kind == "layer":
        out = draw(widths)
        return layer(width, out), out
    middle = draw(widths)
    out = width if kind == "identity" else draw(widths)
    inner = nn.Sequential(layer(width, middle), draw(_activations), layer(middle, out))
    shortcut = nn.Identity() if kind == "identity" else layer(width, out)
    return _residual(inner, shortcut), out


@st.composite
def dense_networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A network of Linear layers, norms, activations and residual blocks, with its inputs."""
    inputs = width = draw(widths)
    blocks: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        norms = [nn.BatchNorm1d(width), nn.LayerNorm(width), *_group_norms(width)]
        block, width = draw(_blocks(width, nn.Linear, norms))
        blocks.append(block)
    model = randomised(nn.Sequential(*blocks, nn.Linear(width, 2)), draw(seeds))
    return model, torch.randn(3, inputs, dtype=torch.float64)


@st.composite
def convolutional_networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """The same with convolutions, pooling, and a flatten or a mean before the last layer."""

    def convolution(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    channels = width = draw(widths)
    side = 4
    blocks: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        norms = [nn.BatchNorm2d(width), nn.InstanceNorm2d(width, affine=True)]
        block, width = draw(_blocks(width, convolution, [*norms, *_group_norms(width)]))
        blocks.append(block)
        if side == 4 and draw(st.booleans()):
            blocks.append(draw(st.sampled_from((nn.MaxPool2d(2), nn.AvgPool2d(2)))))
            side = 2
    flat = draw(st.booleans())
    head = [nn.Flatten() if flat else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    features = width * side**2 if flat else width
    model = randomised(nn.Sequential(*blocks, *head, nn.Linear(features, 2)), draw(seeds))
    return model, torch.randn(2, channels, 4, 4, dtype=torch.float64)


def _group_norms(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(count, width) for count in range(1, width + 1) if width % count == 0]
