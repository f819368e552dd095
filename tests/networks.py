"""Small architectures for the tests, and random weights for them."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks import CNN, ResNet, mlp
from gpu_align import Permutation, PermutationSpec, discover

State = dict[str, Tensor]


class Graph(nn.Module):
    """Layers by name, and the function that connects them: called with the module and inputs."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


def group_norm_net() -> Graph:
    """A convolution whose six channels are normalised in two groups, then flattened."""
    return Graph(
        lambda s, x: s.fc(F.relu(s.norm(s.conv(x))).flatten(1)),
        conv=nn.Conv2d(1, 6, 2),
        norm=nn.GroupNorm(2, 6),
        fc=nn.Linear(6 * 4, 2),
    )


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 with random weights and running statistics, so none is equal."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                draw /= math.sqrt(max(tensor[0].numel(), 1)) if tensor.ndim > 1 else 1.0
                tensor.copy_(draw.abs() + 0.5 if name.endswith("running_var") else draw)
    return model


@dataclass(frozen=True)
class Pair:
    """A spec and two networks that it describes, in float64."""

    spec: PermutationSpec
    source: State
    target: State


_ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp([3, 4, 5, 2]), (2, 3)),
    "deep": (lambda: mlp([4, 9, 9, 9, 3], nn.Tanh), (2, 4)),
    "tiny": (lambda: mlp([2, 4, 3, 2]), (2, 2)),
    "shallow": (lambda: mlp([2, 4, 2]), (2, 2)),
    "wide": (lambda: mlp([3, 63, 1, 2]), (2, 3)),
    "cnn": (lambda: CNN(2, hidden=3, side=16), (2, 1, 16, 16)),
    "resnet": (lambda: ResNet(2), (2, 1, 8, 8)),
    "groupnorm": (group_norm_net, (2, 1, 3, 3)),
}
FAMILIES = [
    "heads",
    "grouped",
    "gqa",
    "signed",
    "signed_heads",
    "signed_gqa",
    "signed_recurrent",
    "single",
    "fixed_heads",
    "fixed_gqa",
    "packed_heads",
]
"""Hand-written specs of groups with parents, and of groups with signs."""
PAIRS = [*_ARCHITECTURES, "recurrent", "trilinear", *FAMILIES]
"""Names for `pair`; those that are no architectures are hand-written specs of a special kind."""


def model_of(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return an architecture with random weights, and example inputs."""
    build, shape = _ARCHITECTURES[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return randomised(build(), seed), inputs


@functools.cache
def pair(name: str, seed: int = 0) -> Pair:
    """Return two networks with independent random weights."""
    if name in _HAND_WRITTEN:
        return random_pair(PermutationSpec.from_json(_HAND_WRITTEN[name]), seed)
    model, inputs = model_of(name, 2 * seed)
    other, _ = model_of(name, 2 * seed + 1)
    return Pair(discover(model, inputs, verify=False), other.state_dict(), model.state_dict())


def random_pair(spec: PermutationSpec, seed: int = 0) -> Pair:
    """Return two networks of a spec with independent normal weights."""
    return Pair(spec, _random_state(spec, 2 * seed + 1), _random_state(spec, 2 * seed))


def resized(name: str, **sizes: int) -> PermutationSpec:
    """Return a hand-written spec with other sizes of its groups."""
    document = json.loads(_HAND_WRITTEN[name])
    for group, size in sizes.items():
        entry = document["groups"][group]
        document["groups"][group] = {**entry, "size": size} if isinstance(entry, dict) else size
    return PermutationSpec.from_json(json.dumps(document))


def planted(name: str, noise: float, seed: int = 0) -> tuple[Pair, Permutation]:
    """Return a target, a source that is the target reordered plus noise, and what undoes it.

    Args:
        name: of `PAIRS`.
        noise: standard deviation of the noise in units of that of each tensor.
        seed: of everything.
    """
    return planted_in(pair(name, seed), noise, seed)


def planted_in(given: Pair, noise: float, seed: int = 0) -> tuple[Pair, Permutation]:
    """Return the same for the target of a pair."""
    generator = torch.Generator().manual_seed(seed)
    permutation = Permutation.random(given.spec, generator=generator)
    source = permutation.inverse().apply(given.target)
    for key, tensor in source.items():
        if given.spec.lookup(key).counted and tensor.numel() > 1:
            draw = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            source[key] = tensor + noise * tensor.std() * draw
    return Pair(given.spec, source, given.target), permutation


def _random_state(spec: PermutationSpec, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in spec.tensors.items()
    }


_HAND_WRITTEN = {
    # A group on both axes of one tensor: the objective is quadratic in it.
    "recurrent": """{"format": "gpu-align/spec", "version": 1, "groups": {"h": 4, "o": 3},
        "tensors": {"w_in": ["h", 2], "w_hh": ["h", "h"], "b": ["h"], "w_oh": ["o", "h"],
        "w_out": [2, "o"]}}""",
    # Three groups on one tensor, and axes that are products and concatenations.
    "trilinear": """{"format": "gpu-align/spec", "version": 1, "groups": {"a": 3, "b": 2, "c": 4},
        "tensors": {"w_a": ["a", 2], "w_b": ["b", 3], "w_abc": ["a", "b", "c"],
        "w_c": [{"product": ["c", 2]}, {"product": [2, "a"]}],
        "w_cat": [{"concat": ["a", 2, {"product": ["b", "c"]}]}], "w_out": [2, "c"]}}""",
    # Attention between residual units, and a hidden layer; pairs of dims inside a head go together.
    "heads": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "head": 2, "qk": {"size": 2, "parent": "head"},
        "v": {"size": 2, "parent": "head"}, "f": 3},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["head", 2, "qk"]}, "e"],
        "k": [{"product": ["head", 2, "qk"]}, "e"], "v": [{"product": ["head", "v"]}, "e"],
        "o": ["e", {"product": ["head", "v"]}], "gate": ["head"], "norm": ["e"],
        "up": ["f", "e"], "down": ["e", "f"]}}""",
    # A grouped convolution between two others: its parent is on the other axis of the weight.
    "grouped": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"g": 2, "i": {"size": 2, "parent": "g"}, "o": {"size": 2, "parent": "g"},
        "h": 3},
        "tensors": {"w_in": [{"product": ["g", "i"]}, 2],
        "w": [{"product": ["g", "o"]}, "i", 3], "b": [{"product": ["g", "o"]}],
        "w_h": ["h", {"product": ["g", "o"]}], "w_out": [2, "h"]}}""",
    # Several query heads for one of keys and values.
    "gqa": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "kv": 2, "rep": {"size": 2, "parent": "kv"},
        "qk": {"size": 2, "parent": "kv"}, "v": {"size": 2, "parent": "kv"}},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["kv", "rep", "qk"]}, "e"],
        "k": [{"product": ["kv", "qk"]}, "e"], "v": [{"product": ["kv", "v"]}, "e"],
        "o": ["e", {"product": ["kv", "rep", "v"]}]}}""",
    # tanh: a unit is negated where it is made and where it is read; a norm's weight is not.
    "signed": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"a": {"size": 3, "signed": true}, "b": {"size": 2, "signed": true}},
        "tensors": {"w_a": ["a^1", 2], "b_a": ["a^1"], "norm": ["a"], "w_b": ["b^1", "a^-1"],
        "b_b": ["b^1"], "w_out": [2, "b^-1"]}}""",
    "signed_heads": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "head": 2, "qk": {"size": 2, "parent": "head", "signed": true},
        "v": {"size": 2, "parent": "head", "signed": true}},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["head", "qk^1"]}, "e"],
        "k": [{"product": ["head", "qk^-1"]}, "e"], "q_norm": [{"product": ["head", "qk"]}],
        "v": [{"product": ["head", "v^1"]}, "e"], "o": ["e", {"product": ["head", "v^-1"]}]}}""",
    "signed_gqa": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "kv": 2, "rep": {"size": 2, "parent": "kv"},
        "qk": {"size": 2, "parent": "kv"}, "v": {"size": 2, "parent": "kv", "signed": true}},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["kv", "rep", "qk"]}, "e"],
        "k": [{"product": ["kv", "qk"]}, "e"], "v": [{"product": ["kv", "v^1"]}, "e"],
        "v_bias": [{"product": ["kv", "v^1"]}], "o": ["e", {"product": ["kv", "rep", "v^-1"]}]}}""",
    "signed_recurrent": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"h": {"size": 3, "signed": true}},
        "tensors": {"w_in": ["h^1", 2], "w_hh": ["h^1", "h^-1"], "b": ["h^1"],
        "w_out": [2, "h^-1"]}}""",
    # Single units, alone and inside each of two others: nothing to reorder, but signs.
    "single": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"g": {"size": 1, "signed": true}, "h": 3, "p": 2,
        "c": {"size": 1, "parent": "p", "signed": true}, "d": {"size": 1, "parent": "p"}},
        "tensors": {"w_g": ["g^1", 3], "w_h": ["h", "g^-1"], "b_h": ["h"],
        "w_p": [{"product": ["p", "c^1"]}, "h"], "b_p": [{"product": ["d", "p"]}],
        "w_out": [2, {"product": ["c^-1", "p"]}]}}""",
    # Heads that stay where they are, with a weight of their own; the parent on another axis, too.
    "fixed_heads": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "head": {"size": 2, "fixed": true}, "qk": {"size": 2, "parent": "head"},
        "v": {"size": 2, "parent": "head", "signed": true}},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["head", "qk"]}, "e"],
        "k": [{"product": ["head", "qk"]}, "e"], "slope": ["head"], "mix": ["head", "e"],
        "v": ["head", "v^1", "e"], "o": ["e", {"product": ["head", "v^-1"]}]}}""",
    "fixed_gqa": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "kv": {"size": 2, "fixed": true}, "rep": {"size": 2, "parent": "kv"},
        "qk": {"size": 2, "parent": "kv"}, "v": {"size": 2, "parent": "kv", "signed": true}},
        "tensors": {"embed": [2, "e"], "q": [{"product": ["kv", "rep", "qk"]}, "e"],
        "k": [{"product": ["kv", "qk"]}, "e"], "v": [{"product": ["kv", "v^1"]}, "e"],
        "o": ["e", {"product": ["kv", "rep", "v^-1"]}]}}""",
    # Queries, keys and values of each head side by side, some of their dimensions fixed.
    "packed_heads": """{"format": "gpu-align/spec", "version": 2,
        "groups": {"e": 3, "head": 2, "qk": {"size": 2, "parent": "head"},
        "v": {"size": 2, "parent": "head", "signed": true}},
        "tensors": {"embed": [2, "e"],
        "qkv": [{"product": ["head", {"concat": [1, "qk", 1, "qk", "v^1"]}]}, "e"],
        "o": ["e", {"product": ["head", "v^-1"]}]}}""",
}
