"""Networks with unlike heads: aligned and merged up to the last layer, each head kept."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._align import align
from gpu_align._errors import InputError
from gpu_align._merge._average import average
from gpu_align._search import ProgressCallback, Search
from gpu_align._symmetry import (
    Axis,
    Permutation,
    PermutationSpec,
    StateDict,
    TensorSpec,
    chain_spec,
)


@dataclass(frozen=True)
class SharedBody:
    """What networks with unlike heads have in common.

    Attributes:
        spec: of the bodies, by which they can be aligned: `align(bodies[1], bodies[0], spec=spec)`.
        bodies: the tensors that are no head, of each network.
        specs: of each network with its head.
        heads: names of the tensors of the heads.
    """

    spec: PermutationSpec
    bodies: Sequence[dict[str, Tensor]]
    specs: Sequence[PermutationSpec]
    heads: frozenset[str]

    def whole(self, permutation: Permutation, network: int) -> Permutation:
        """Return a permutation of a body as that of its network; units that only heads have stay.

        Args:
            permutation: of `spec`.
            network: number of the network.
        """
        spec = self.specs[network]
        perms = Permutation.identity(spec).perms
        return Permutation(spec, {**perms, **permutation.perms}, permutation.signs)


@dataclass(frozen=True)
class HeadedMerge:
    """One body with a head for each network.

    Attributes:
        body: the mean of the bodies, in the order of units of the first.
        heads: the head of each network, its units in the same order.
        networks: the state dict of each network, its body replaced by the merged one.
    """

    body: dict[str, Tensor]
    heads: Sequence[dict[str, Tensor]]
    networks: Sequence[dict[str, Tensor]]


def shared_body(
    states: Sequence[StateDict],
    spec: PermutationSpec | None = None,
    *,
    heads: Collection[str] = (),
) -> SharedBody:
    """Find what networks have in common whose heads differ, say in their number of classes.

    Args:
        states: state dicts with the same names.
        spec: of the first network. Default: that of a plain chain of layers.
        heads: names of further tensors that are not comparable, such as heads of the same shape for
            other classes. Tensors whose shapes differ are heads in any case.

    Raises:
        InputError: names differ, `heads` are not among them, shapes differ along units, or there is
            no body; its child SpecError: the first network is no plain chain or does not fit.
    """
    if not states:
        raise InputError("expected at least one network, got none; pass a list of state dicts")
    first = states[0]
    spec = chain_spec(first) if spec is None else spec
    spec.validate(first, "network 0")
    for number, state in enumerate(states):
        if unlike := sorted(state.keys() ^ first.keys()):
            raise InputError(
                f"network {number} does not have the names of network 0 ({unlike[0]!r}); rename "
                "the tensors of its head"
            )
    if unknown := sorted(set(heads) - first.keys()):
        raise InputError(f"expected names of tensors as heads, got {unknown[0]!r}")
    names = {n for n in first if any(s[n].shape != first[n].shape for s in states)} | set(heads)
    roots = {spec.ties.get(name, name) for name in names}
    names = {name for name in first if spec.ties.get(name, name) in roots}
    if len(names) == len(first):
        raise InputError("the networks have no tensors in common; nothing can be merged")
    bodies = [{n: t for n, t in state.items() if n not in names} for state in states]
    specs = [_resized(spec, roots, state) for state in states]
    return SharedBody(_without(spec, roots), bodies, specs, frozenset(names))


def merge_heads(
    states: Sequence[StateDict],
    spec: PermutationSpec | None = None,
    *,
    heads: Collection[str] = (),
    weights: Sequence[float] | None = None,
    search: Search | str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> HeadedMerge:
    """Align the bodies of networks to that of the first and average them; each head is kept.

    Args:
        states, spec, heads: see `shared_body`.
        weights: of the bodies, see `average`.
        search, device, seed, progress: of the alignment, see `align`.

    Raises:
        InputError: see `shared_body` and `align`; AssignmentError: see `align`.
    """
    shared = shared_body(states, spec, heads=heads)
    found = align(
        shared.bodies[1:],
        shared.bodies[0],
        spec=shared.spec,
        search=search,
        device=device,
        seed=seed,
        progress=progress,
    )
    permutations = [result.unwrap().permutation for result in found]
    aligned = [dict(states[0])]
    for number, permutation in enumerate(permutations, 1):
        aligned.append(shared.whole(permutation, number).apply(states[number]))
    body = average([{n: state[n] for n in shared.bodies[0]} for state in aligned], weights)
    own = [{n: t.clone() for n, t in state.items() if n in shared.heads} for state in aligned]
    networks = [{n: (body | head)[n] for n in states[0]} for head in own]
    return HeadedMerge(body, own, networks)


def _resized(spec: PermutationSpec, heads: Collection[str], state: StateDict) -> PermutationSpec:
    """Return the spec of a network whose heads have other sizes along axes without units.

    Raises:
        InputError: they differ along units.
    """
    tensors = dict(spec.tensors)
    for name in heads:
        shape = spec.tensor_of(name, state).shape
        axes = list(tensors[name].axes)
        for number, axis in enumerate(axes):
            if len(shape) == len(axes) and axis.size == shape[number]:
                continue
            if axis.groups or len(shape) != len(axes):
                raise InputError(
                    f"{name!r} has shape {list(shape)}, expected {list(tensors[name].shape)} but "
                    "for the axes without units; the bodies must be of one architecture"
                )
            axes[number] = Axis.fixed(shape[number])
        tensors[name] = TensorSpec(tuple(axes), tensors[name].counted)
    return replace(spec, tensors=tensors)


def _without(spec: PermutationSpec, heads: Collection[str]) -> PermutationSpec:
    """Return the spec of a body: without the heads, and without units that only these have."""
    tensors = {name: tensor for name, tensor in spec.tensors.items() if name not in heads}
    used = {group for tensor in tensors.values() for group in tensor.groups}
    used |= {spec.groups[group].parent or group for group in used}
    return replace(
        spec,
        groups={name: group for name, group in spec.groups.items() if name in used},
        tensors=tensors,
        ties={name: kept for name, kept in spec.ties.items() if kept not in heads},
        pins=tuple(pin for pin in spec.pins if pin.tensor not in heads),
        norm_scales=tuple(s for s in spec.norm_scales if set(s.names).isdisjoint(heads)),
        partial_pins=tuple(pin for pin in spec.partial_pins if pin.tensor not in heads),
    )
