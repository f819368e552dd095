"""partial_merge: units that match badly stay apart, within a budget of width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from gpu_align._checkpoint import rename
from gpu_align._errors import InputError, ModelError
from gpu_align._merge._average import check_alike
from gpu_align._merge._widen import Split, Splits, wide_module, wide_tensors
from gpu_align._process import MODULES
from gpu_align._symmetry import (
    PRESERVED,
    PermutationSpec,
    Reference,
    StateDict,
    as_arguments,
    unwrapped,
)

_SHORT = 1e-4
"""Relative difference of outputs that counts as rounding where an op was run in float32."""


@dataclass(frozen=True)
class PartialMerge:
    """A network that is wider than the two that it was made of.

    Attributes:
        model: it runs, and its layers have the sizes that they say.
        apart: group -> int64 [k], numbers of the units of both networks that it has side by side.
        whole: group that had to be merged as a whole -> why.
        width: units of the groups that could be widened, in units of those of one network.
    """

    model: nn.Module
    apart: Mapping[str, Tensor]
    whole: Mapping[str, str]
    width: float


def partial_merge(
    first: StateDict,
    second: StateDict,
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: object,
    *,
    budget: float = 1.2,
    scores: Mapping[str, Tensor] | None = None,
) -> PartialMerge:
    """Merge two aligned networks into a wider one, in which badly matched units stay apart.

    Every group of n units gets n + k: k of both networks side by side, the others averaged. The
    pairs with the lowest scores of all groups together stay apart. A group is merged as a whole
    where others are inside of it (heads), and where the module cannot be widened: its forward has
    the size written into it, an attention has no place for it, or, as a layer norm does, it mixes
    all units. That is tried on the first network beside a copy of itself, in float64.

    Args:
        first, second: state dicts, the second aligned to the first.
        spec: of both, with the names of the module.
        model: that the networks are of; left as it is. It must run at other widths.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        budget: from 1 (the average) to 2 (all apart: the mean of the two networks' outputs): by how
            much the number of units may grow, of those groups together that can be widened.
        scores: group -> [units], how well each pair matches, such as the correlation of its
            activations; comparable from group to group. Default, and for groups that are left out:
            2 <a, b> / (|a|² + |b|²) of all weights that make or read the two.

    Raises:
        InputError: the budget or the scores cannot be used, the networks differ in shape, or the
            spec is not of the module; ModelError: the forward fails.

    Source: ZipIt! (Stoica et al., ICLR 2024), section 4.2; PLeaS (Nasery et al., 2024), section
    3.1.
    """
    if not 1 <= budget <= 2:
        raise InputError(f"expected a budget from 1 to 2, got budget={budget!r}")
    states = [rename(state, spec.keys).state for state in (first, second)]
    check_alike(states, spec)
    with MODULES:
        inner = unwrapped(model)
        if not spec.keys <= inner.state_dict().keys():
            raise InputError(
                "the spec names tensors that the module does not have; pass a spec discovered from "
                "the module"
            )
        trial = _Trial(inner, spec, states[0], example_inputs)
        whole = {name: reason for name in spec.groups if (reason := trial.refusal(name))}
        free = {name: spec.units(name) for name in spec.groups if name not in whole}
        splits = _choose(free, _scores(spec, states, free, scores or {}), budget)
        if not trial.is_kept(splits):
            raise ModelError(
                "the module can be widened in each group but not in all of them together; pass "
                "budget=1, or average the networks"
            )
        wide = wide_module(inner, spec, wide_tensors(spec, states, splits, inner))
    total = sum(free.values())
    width = sum(split.size for split in splits.values()) / total if total else 1.0
    return PartialMerge(wide, {name: s.apart for name, s in splits.items()}, whole, width)


class _Trial:
    """Tells whether a module can be widened: with two copies of one network nothing may change."""

    def __init__(
        self, model: nn.Module, spec: PermutationSpec, state: StateDict, example_inputs: object
    ) -> None:
        self.model, self.spec, self.state = model, spec, state
        self.arguments = as_arguments(example_inputs)
        self.outputs = Reference(model, self.arguments).outputs(state)
        parents = {group.parent for group in spec.groups.values()}
        self.parents = {name for name in parents if name is not None}

    def refusal(self, name: str) -> str | None:
        """Return why a group has to be merged as a whole; None if it need not."""
        group = self.spec.groups[name]
        if isinstance(self.model, fx.GraphModule):
            return "the layers of an exported program have no other sizes; pass the module itself"
        if group.parent is not None:
            return f"its units are inside those of {group.parent!r}"
        if name in self.parents or group.fixed:
            return "its units have others inside of them"
        for tensor, tensor_spec in self.spec.tensors.items():
            value = self.spec.tensor_of(tensor, self.state)
            if name in tensor_spec.groups and not value.is_floating_point():
                return f"{tensor!r} holds {value.dtype}"
        every_second = torch.arange(0, group.size, 2, device="cpu")
        try:
            kept = self.is_kept({name: Split(group.size, every_second)})
        except ModelError as error:
            return f"the module does not run with more of its units: {error}"
        return None if kept else "the module mixes its units, so that more of them change others"

    def is_kept(self, splits: Splits) -> bool:
        """Whether two copies of the network, merged with splits, compute what it computes.

        Raises:
            ModelError: the forward of the wider module fails.
        """
        tensors = wide_tensors(self.spec, [self.state, self.state], splits, self.model)
        reference = Reference(wide_module(self.model, self.spec, tensors), self.arguments)
        found = reference.outputs({})
        limit = _SHORT if reference.shortened else PRESERVED
        pairs = zip(self.outputs, found, strict=False)
        return len(found) == len(self.outputs) and all(_is_near(x, y, limit) for x, y in pairs)


def _is_near(before: Tensor, after: Tensor, limit: float) -> bool:
    if before.shape != after.shape or not before.numel():
        return before.shape == after.shape
    if not before.is_floating_point():
        return torch.equal(before, after)
    return float((before - after).abs().max()) <= limit * float(before.abs().max())


def _choose(free: Mapping[str, int], scores: Mapping[str, Tensor], budget: float) -> Splits:
    """Split groups so that the lowest scores stay apart, as many as the budget allows."""
    places = [(float(s), n, u) for n, name in enumerate(free) for u, s in enumerate(scores[name])]
    most = int((budget - 1) * len(places) + 1e-9)
    apart: dict[int, list[int]] = {}
    for _, number, unit in sorted(places)[:most]:
        apart.setdefault(number, []).append(unit)
    return {
        name: Split(units, torch.tensor(sorted(apart.get(n, [])), dtype=torch.int64, device="cpu"))
        for n, (name, units) in enumerate(free.items())
    }


def _scores(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    free: Mapping[str, int],
    given: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the score of each pair of units, float64 [units] for each group.

    Raises:
        InputError: a given one is of no group, has not one number for each unit, or a NaN.
    """
    for name, score in given.items():
        if name not in spec.groups or score.shape != (spec.units(name),) or score.isnan().any():
            raise InputError(
                f"expected scores as numbers [units] for the groups {sorted(spec.groups)}, got "
                f"{list(score.shape)} for {name!r}"
            )
    return {
        name: given[name].to("cpu", torch.float64) if name in given else _match(spec, states, name)
        for name in free
    }


def _match(spec: PermutationSpec, states: Sequence[StateDict], group: str) -> Tensor:
    """Return 2 <a, b> / (|a|² + |b|²) of the parameters of each pair of units, float64 [units]."""
    products = torch.zeros(spec.units(group), dtype=torch.float64, device="cpu")
    squares = torch.zeros_like(products)
    for name, tensor in spec.tensors.items():
        if not tensor.counted or group not in tensor.groups:
            continue
        pair = [spec.tensor_of(name, state).to("cpu", torch.float64) for state in states]
        for block in tensor.blocks:
            for number in block.numbers_of(group):
                units = block.factors[number].size
                parts = [block.unfold(t).movedim(number, 0).reshape(units, -1) for t in pair]
                products += (parts[0] * parts[1]).sum(1)
                squares += parts[0].square().sum(1) + parts[1].square().sum(1)
    return torch.where(squares > 0, 2 * products / squares, 1.0)
