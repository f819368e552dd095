"""Random networks: whatever ops are put together, all symmetries that are found are true."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marks import slow
from networks import Graph, randomised
from oracles import assert_same_function
from strategies import seeds
from torch import Tensor, nn

from gpu_align import Permutation, PermutationSpec, discover

MOST_ENTRIES = 1500
Op = Callable[..., Tensor]


class Network(nn.Module):
    """Steps one after another, each on values that are there already, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Op, list[int]]] = []
        self.layers = nn.ModuleList()

    def add(self, op: Op, sources: list[int]) -> None:
        self.steps.append((op, sources))
        if isinstance(op, nn.Module):
            self.layers.append(op)

    def values(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for op, sources in self.steps:
            values.append(op(*(values[source] for source in sources)))
        return values

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.values(x)[-1].reshape(-1))


def dim_of(draw: st.DrawFn, x: Tensor) -> int:
    return draw(st.integers(0, x.ndim - 1))


def divisor(draw: st.DrawFn, size: int) -> int:
    return draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))


def along(module: nn.Module, dim: int) -> nn.Module:
    """Apply a module that works on the last axis to another one: heads, tokens, places."""
    return Graph(lambda s, x: s.inner(x.movedim(dim, -1)).movedim(-1, dim), inner=module)


# Kinds of steps. Each gets a value, and returns an op on it or None if there is none.


def linear(draw: st.DrawFn, x: Tensor) -> Op:
    layer = nn.Linear(x.shape[-1], draw(st.sampled_from([2, 3, 4, 6])), bias=draw(st.booleans()))
    return layer


def mixing(draw: st.DrawFn, x: Tensor) -> Op:
    dim = dim_of(draw, x)
    return along(nn.Linear(x.shape[dim], draw(st.sampled_from([2, 3, x.shape[dim]]))), dim)


def convolution(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim not in (3, 4):
        return None
    inputs = x.shape[1]
    groups = divisor(draw, inputs)
    outputs = groups * draw(st.integers(1, 3))
    kind = {3: nn.Conv1d, 4: nn.Conv2d}[x.ndim]
    if draw(st.booleans()):
        kind = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d}[x.ndim]
    return kind(inputs, outputs, 1, groups=groups)


def activation(draw: st.DrawFn, x: Tensor) -> Op:
    return draw(st.sampled_from([torch.tanh, torch.relu, torch.sin, F.softplus]))


def norm(draw: st.DrawFn, x: Tensor) -> Op | None:
    kind = draw(st.sampled_from(["layer", "rms", "group", "batch"]))
    if kind in ("layer", "rms"):
        shape = x.shape[-draw(st.integers(1, min(2, x.ndim))) :]
        affine = draw(st.booleans())
        return (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(
            shape, elementwise_affine=affine, eps=0.1
        )
    if x.ndim < 2 or (kind == "batch" and x.ndim not in (2, 3, 4)):
        return None
    if kind == "group":
        return nn.GroupNorm(divisor(draw, x.shape[1]), x.shape[1], eps=0.1)
    layers = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return layers[x.ndim](x.shape[1], eps=0.1, track_running_stats=draw(st.booleans()))


def softmax(draw: st.DrawFn, x: Tensor) -> Op:
    dim = dim_of(draw, x)
    if draw(st.booleans()):
        return lambda x: F.normalize(x, dim=dim)
    return lambda x: 3 * x.softmax(dim)


def split_axis(draw: st.DrawFn, x: Tensor) -> Op | None:
    dim = dim_of(draw, x)
    first = divisor(draw, x.shape[dim])
    return lambda x: x.unflatten(dim, (first, -1)) if x.ndim < 5 else None


def merge_axes(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim < 3:
        return None
    dim = draw(st.integers(0, x.ndim - 2))
    return lambda x: x.flatten(dim, dim + 1)


def permute(draw: st.DrawFn, x: Tensor) -> Op:
    dims = draw(st.permutations(range(x.ndim)))
    return lambda x: x.permute(dims)


def reduction(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim < 2:
        return None
    dims = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=2, unique=True))
    keepdim = draw(st.booleans())
    if draw(st.booleans()):
        return lambda x: x.amax(dims, keepdim)
    return lambda x: x.sum(dims, keepdim)


def cut(draw: st.DrawFn, x: Tensor) -> Op | None:
    dim = dim_of(draw, x)
    size = x.shape[dim]
    if size < 2:
        return None
    kind = draw(st.sampled_from(["swap", "slice", "halves", "select", "stack", "pad", "flip"]))
    at = draw(st.integers(1, size - 1))
    if kind == "swap":
        return lambda x: torch.cat(x.split([at, size - at], dim)[::-1], dim)
    if kind == "slice":
        return lambda x: x.narrow(dim, at // 2, at)
    if kind == "halves" and size % 2 == 0:
        return lambda x: torch.mul(*x.chunk(2, dim))
    if kind == "select" and x.ndim > 1:
        return lambda x: x.select(dim, at)
    if kind == "stack" and x.ndim < 5:
        return lambda x: torch.stack([x, x.tanh()], dim)
    if kind == "pad":
        return lambda x: F.pad(x, (1, 0))
    return lambda x: x.flip(dim)


def unpacked(draw: st.DrawFn, x: Tensor) -> Op | None:
    """Split an axis in slices, move and merge axes, take slices apart and put them together."""
    dim = dim_of(draw, x)
    count = divisor(draw, x.shape[dim])
    dims = draw(st.permutations(range(x.ndim + 1)))
    place = dims.index(dim)
    others = [n for n in range(x.ndim) if place not in (n, n + 1)]
    merged = draw(st.sampled_from([None, *others]))
    function = draw(st.sampled_from([torch.relu, torch.sin, lambda x: x]))
    whole = draw(st.booleans())

    def run(x: Tensor) -> Tensor:
        split = function(x.unflatten(dim, (count, -1)).permute(dims))
        at = place
        if merged is not None:
            split, at = split.flatten(merged, merged + 1), place - (merged < place)
        first, *rest = split.unbind(at) if whole else [split.select(at, 0)]
        for number, other in enumerate(rest):
            first = first * other if number % 2 else first + torch.tanh(other)
        return first

    return run if x.ndim < 5 else None


def repeated(draw: st.DrawFn, x: Tensor) -> Op:
    dim = dim_of(draw, x)
    if draw(st.booleans()):
        return lambda x: x.repeat_interleave(2, dim)
    return lambda x: torch.cat([x, x], dim)


class Scale(nn.Module):
    """Multiply by a parameter that lies on some of the axes."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def scale(draw: st.DrawFn, x: Tensor) -> Op:
    return Scale([size if draw(st.booleans()) else 1 for size in x.shape])


class Attention(nn.Module):
    """Self-attention of [batch, tokens, units]; heads may be mixed, normalised, shared."""

    def __init__(self, width: int, heads: int, depth: int, options: dict[str, object]) -> None:
        super().__init__()
        self.heads, self.options = heads, options
        self.qkv = nn.Linear(width, 3 * heads * depth)
        self.proj = nn.Linear(heads * depth, width)
        if options["norm"]:
            self.norm = nn.LayerNorm((heads, depth) if options["norm"] == "all" else depth)
        if options["mix"]:
            self.mix = nn.Linear(heads, heads)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return queries, keys and values [batch, tokens, heads, depth]."""
        packed = self.qkv(x)
        if self.options["packing"] == "first":
            return list(packed.unflatten(-1, (3, self.heads, -1)).unbind(2))
        if self.options["packing"] == "inside":
            return list(packed.unflatten(-1, (self.heads, -1)).chunk(3, -1))
        return [part.unflatten(-1, (self.heads, -1)) for part in packed.chunk(3, -1)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        if self.options["norm"]:
            q, k = self.norm(q), self.norm(k)
        if self.options["shared_keys"]:
            k = k.mean(2, keepdim=True).expand(q.shape)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.options["mix"]:
            scores = self.mix((q @ k.mT).movedim(1, -1)).movedim(-1, 1)
            y = scores.softmax(self.options["over"]) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=bool(self.options["causal"]))
        return x + self.proj(y.transpose(1, 2).flatten(2))


def attention(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim != 3:
        return None
    options = {
        "packing": draw(st.sampled_from(["first", "inside", "last"])),
        "norm": draw(st.sampled_from(["", "", "each", "all"])),
        "mix": draw(st.booleans()),
        "over": draw(st.sampled_from([1, -1, -1])),
        "shared_keys": draw(st.booleans()),
        "causal": draw(st.booleans()),
    }
    sizes = st.integers(2, 3)
    return Attention(x.shape[-1], draw(sizes), draw(sizes), options)


def multihead(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim != 3:
        return None
    heads = divisor(draw, x.shape[-1])
    layer = nn.MultiheadAttention(x.shape[-1], heads, batch_first=draw(st.booleans()))
    weights = draw(st.booleans())
    return Graph(lambda s, x: s.layer(x, x, x)[int(weights)], layer=layer)


def recurrence(draw: st.DrawFn, x: Tensor) -> Op | None:
    if x.ndim not in (2, 3):
        return None
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    hidden = draw(st.integers(2, 4))
    projected = {"proj_size": hidden - 1} if kind is nn.LSTM and draw(st.booleans()) else {}
    layer = kind(
        *(x.shape[-1], hidden, draw(st.integers(1, 2))),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        **projected,
    )
    final = draw(st.integers(0, 2))

    def run(s: nn.Module, x: Tensor) -> Tensor:
        out, state = s.layer(x)
        state = state if isinstance(state, Tensor) else state[-1]
        return (out, state, state[-1])[final]

    return Graph(run, layer=layer)


def numbered(draw: st.DrawFn, x: Tensor) -> Op | None:
    """Number places by size, and look up, write or choose by the numbers."""
    dim = dim_of(draw, x)
    size = x.shape[dim]
    kind = draw(st.sampled_from(["largest", "sorted", "best", "sparse", "median", "codes", "add"]))
    count = draw(st.integers(1, size))
    match kind:
        case "largest":
            return lambda x: x * (x >= x.topk(count, dim).values.amin(dim, keepdim=True))
        case "sorted":
            return lambda x: x.gather(dim, x.argsort(dim)) + x.sort(dim).values
        case "best" if all_differ(x, dim):
            return lambda x: x.sin() * F.one_hot(x.argmax(dim), size).movedim(-1, dim)
        case "sparse" if all_differ(x, dim):
            return lambda x: written_back(x, count, dim)
        case "median":
            return lambda x: x - x.median(dim, keepdim=True).values
        case "codes" if all_differ(x, dim):
            return Codes(size, dim, draw(st.booleans()))
        case "add" if all_differ(x, dim):
            return lambda x: x + x.argmax(dim, keepdim=True)
        case _:
            return None


def all_differ(x: Tensor, dim: int) -> bool:
    """Whether there is no tie: of equal values any may come first."""
    return x.shape[dim] < 2 or bool((x.sort(dim).values.diff(dim=dim) > 1e-6).all())


def written_back(x: Tensor, count: int, dim: int) -> Tensor:
    values, places = x.topk(count, dim)
    return torch.zeros_like(x).scatter(dim, places, values.tanh())


class Codes(nn.Module):
    """A row of weights for the largest place; rows may be sorted by these, and brought back."""

    def __init__(self, size: int, dim: int, is_sorted: bool) -> None:
        super().__init__()
        self.dim, self.is_sorted = dim, is_sorted
        self.up = nn.Parameter(torch.empty(size, 3))
        self.down = nn.Parameter(torch.empty(size, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        numbers = x.argmax(self.dim)
        rows, chosen = x.amax(self.dim).reshape(-1, 1), numbers.reshape(-1)
        if self.is_sorted:
            chosen, order = chosen.sort()
            rows = rows[order]
        hidden = self.up[chosen].tanh() * rows
        made = torch.bmm(hidden[:, None], self.down[chosen])[:, 0]
        if self.is_sorted:
            made = torch.zeros_like(made).index_add(0, order, made)
        return made.view(*numbers.shape, 2)


def table(draw: st.DrawFn, x: Tensor) -> Op:
    """Add a table that is cut to the size of an axis, in one of several ways."""
    dim, rest = dim_of(draw, x), draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["first", "last", "looked_up", "every_other"]))
    return Table(x.shape, dim, rest, kind)


class Table(nn.Module):
    """A table with more places along one axis than the value that it is added to."""

    def __init__(self, shape: list[int], dim: int, rest: int, kind: str) -> None:
        super().__init__()
        self.dim, self.kind = dim, kind
        size = 2 * shape[dim] if kind == "every_other" else shape[dim] + rest
        self.weight = nn.Parameter(torch.empty([*shape[:dim], size, *shape[dim + 1 :]]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.tanh().movedim(self.dim, 0)
        size = x.shape[self.dim]
        match self.kind:
            case "first":
                weight = weight[:size]
            case "last":
                weight = weight[-size:]
            case "looked_up":
                weight = weight[torch.arange(size)]
            case _:
                weight = weight[::2]
        return x + weight.movedim(0, self.dim)


def with_another(draw: st.DrawFn, x: Tensor, y: Tensor) -> Op | None:
    """Return an op on two values."""
    kind = draw(st.sampled_from(["add", "gate", "cat", "matmul", "attend", "broadcast"]))
    if kind == "cat":
        fits = [d for d in range(x.ndim) if same_but(x, y, d)]
        dim = draw(st.sampled_from(fits)) if fits else 0
        return (lambda x, y: torch.cat([x, y], dim)) if fits else None
    if kind == "matmul" and min(x.ndim, y.ndim) > 1:
        if x.shape[-1] == y.shape[-2] and broadcastable(x.shape[:-2], y.shape[:-2]):
            return lambda x, y: x @ y
        if x.shape[-1] == y.shape[-1] and broadcastable(x.shape[:-2], y.shape[:-2]):
            return lambda x, y: x @ y.mT
    if kind == "attend" and x.ndim == y.ndim == 3 and x.shape[::2] == y.shape[::2]:
        return lambda x, y: F.scaled_dot_product_attention(x, y, y)
    if kind == "broadcast" and x.ndim + y.ndim < 5:
        return lambda x, y: x.reshape(*x.shape, *[1] * y.ndim) * y
    if broadcastable(x.shape, y.shape):
        return (lambda x, y: x * torch.sigmoid(y)) if kind == "gate" else torch.add
    return None


def same_but(x: Tensor, y: Tensor, dim: int) -> bool:
    return x.ndim == y.ndim and all(
        a == b for n, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if n != dim
    )


def broadcastable(first: torch.Size, second: torch.Size) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


KINDS = [
    *(linear, mixing, mixing, convolution, convolution, activation, norm, norm, softmax, softmax),
    *(split_axis, merge_axes, permute, permute, reduction, reduction, cut, unpacked, unpacked),
    *(repeated, scale, scale, attention, multihead, recurrence, numbered, numbered, table),
]


@st.composite
def starts(draw: st.DrawFn, rank: int, inputs: int) -> nn.Module:
    """The first step: units of a layer, or units inside heads, the axes in any order."""
    dim = 1 if rank == 4 else rank - 1
    heads, depth = draw(st.sampled_from([(1, 4), (1, 6), (2, 2), (2, 3), (3, 2), (3, 4)]))
    layer = along(nn.Linear(inputs, heads * depth), dim)
    if heads == 1:
        return layer
    dims = draw(st.permutations(range(rank + 1)))
    return Graph(lambda s, x: s.layer(x).unflatten(dim, (heads, depth)).permute(dims), layer=layer)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A network in float64 with random weights, and its inputs."""
    torch.manual_seed(0)
    shape = draw(st.sampled_from([(2, 3), (2, 3, 4), (3, 2, 4), (2, 2, 2, 3)]))
    inputs = torch.randn(shape, dtype=torch.float64)
    network = Network()
    network.add(draw(starts(len(shape), shape[1 if len(shape) == 4 else -1])), [0])
    for _ in range(draw(st.integers(2, 8))):
        values = network.double().eval().values(inputs)
        last = len(values) - 1
        if draw(st.integers(0, 3)) == 0:
            other = draw(st.integers(1, last))
            sources = draw(st.permutations([last, other]))
            op = with_another(draw, *(values[source] for source in sources))
        else:
            sources = [last]
            op = draw(st.sampled_from(KINDS))(draw, values[last])
        if op is not None and is_usable(op, [values[source] for source in sources]):
            network.add(op, sources)
    size = network.double().eval().values(inputs)[-1].numel()
    network.head = nn.Linear(size, 3)
    return randomised(network, draw(seeds)), inputs


def is_usable(op: Op, values: list[Tensor]) -> bool:
    out = (op.double().eval() if isinstance(op, nn.Module) else op)(*values)
    return out is not None and 0 < out.numel() <= MOST_ENTRIES and out.ndim > 0


ANY = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("examples", slow([10, 300], but=[10]))
def test_random_networks_keep_their_function(examples: int) -> None:
    @settings(ANY, max_examples=examples)
    @given(network=networks())
    def check(network: tuple[nn.Module, Tensor]) -> None:
        assert_symmetries_hold(*network)

    check()


def assert_symmetries_hold(model: nn.Module, inputs: Tensor) -> None:
    """Assert that discovered symmetries keep a function, and that the spec survives its JSON."""
    spec = discover(model, inputs, verify=False)
    assert PermutationSpec.from_json(spec.to_json()) == spec
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        moved = Permutation.random(spec, generator=generator).apply(state)
        assert_same_function(model, inputs, state, moved)
