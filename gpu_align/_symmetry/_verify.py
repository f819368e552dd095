"""Function preservation: does a permuted state dict compute the same outputs?"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gpu_align._checkpoint import rename
from gpu_align._errors import ModelError, SpecError
from gpu_align._process import MODULES
from gpu_align._symmetry._gauge._apply import rescale
from gpu_align._symmetry._gauge._shift import shift_phases
from gpu_align._symmetry._in_double import PRESERVED, SHORT_TOLERANCE, double
from gpu_align._symmetry._memory import memory_of
from gpu_align._symmetry._outputs import Kept
from gpu_align._symmetry._reference import Reference
from gpu_align._symmetry._running import Arguments, as_arguments
from gpu_align._symmetry._sizes import try_other_sizes
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._stacks import Stack
from gpu_align._symmetry._weights import part_ranges
from gpu_align._symmetry._wrappers import unwrapped

if TYPE_CHECKING:
    from gpu_align._symmetry._permutation import Permutation

_COMPARED = 2**18
"""Entries of the state dicts that are run together."""


@dataclass(frozen=True)
class Comparison:
    """How far the outputs under two state dicts are apart.

    Attributes:
        difference: max |y2 - y1| / |y1| over all floating-point outputs, where outputs smaller than
            a tenth of the others count as large as these; inf where integer outputs differ.
        limit: the largest difference that counts as the same function.
        precision: what they were computed in, in words.
    """

    difference: float
    limit: float = PRESERVED
    precision: str = "float64"

    @property
    def is_preserved(self) -> bool:
        """Whether the function is the same."""
        return self.difference <= self.limit


def compare_outputs(
    model: nn.Module,
    example_inputs: object,
    first: StateDict,
    second: StateDict,
    *,
    outputs: Kept | None = None,
) -> Comparison:
    """Compare the outputs under two state dicts, in float64.

    An op that has no kernel for it is run in float32, and the limit is higher.

    Args:
        model: the module; it is run in evaluation mode and left as it was.
        example_inputs: see `as_arguments`.
        first, second: state dicts of the model; names that are missing keep the model's values.
        outputs: those that are compared, see `discover`; default all.

    Raises:
        ModelError: the forward fails.
    """
    with MODULES:
        inner = unwrapped(model)
        names = inner.state_dict().keys()
        if not first.keys() <= names:
            first, second = (rename(state, names).state for state in (first, second))
        reference = Reference(inner, as_arguments(example_inputs), kept=outputs)
        difference = _difference(reference.outputs(first), reference.outputs(second))
        if not reference.shortened:
            return Comparison(difference)
        return Comparison(difference, SHORT_TOLERANCE, f"float64, but {reference.short_ops()}")


def _difference(first: list[Tensor], second: list[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, see `Comparison`."""
    return max((_relative(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def compare_stacks(
    model: nn.Module,
    example_inputs: object,
    first: Stack,
    second: Stack,
    *,
    outputs: Kept | None = None,
) -> tuple[Tensor, float]:
    """Compare the outputs under the state dicts of two stacks, as `compare_outputs` does for each.

    They are run together where `torch.func.vmap` takes the model, else one after another.

    Args:
        model, example_inputs, outputs: as there.
        first, second: m state dicts each, with the same names.

    Returns:
        The difference of each, float64 [m] on the CPU, and the largest that counts as the same
        function.

    Raises:
        ModelError: the forward fails.
    """
    with MODULES:
        inner = unwrapped(model)
        names = inner.state_dict().keys()
        stacks = []
        for each in (first, second):
            known = each.tensors.keys() <= names
            stacks.append(each.tensors if known else rename(each.tensors, names).state)
        reference = Reference(inner, as_arguments(example_inputs), kept=outputs)
        reference.outputs({name: tensor[0] for name, tensor in stacks[0].items()})
        found = []
        elements = sum(tensor[0].numel() for tensor in stacks[0].values())
        for start, stop in part_ranges(len(first), elements, _COMPARED):
            before, after = (
                _outputs_together(reference, {n: t[start:stop] for n, t in each.items()})
                for each in stacks
            )
            pairs = zip(before, after, strict=True)
            worst = [_relative_each(a, b) for a, b in pairs]
            found.append(torch.stack(worst).amax(0).cpu())
    difference = torch.cat([torch.zeros(0, dtype=torch.float64, device="cpu"), *found])
    return difference, SHORT_TOLERANCE if reference.shortened else PRESERVED


def _outputs_together(reference: Reference, states: StateDict) -> list[Tensor]:
    """Return the outputs under every state dict of a stack, [m, *shape] each."""
    run = torch.func.vmap(reference.outputs, randomness="same")
    try:
        return list(run(dict(states)))
    except (ModelError, RuntimeError, ValueError):
        # An op that looks at values, or has no rule: then each is run by itself.
        count = len(next(iter(states.values())))
        each = [reference.outputs({n: t[i] for n, t in states.items()}) for i in range(count)]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]


class SizeError(SpecError):
    """What the spec describes are symmetries for inputs of the traced shape only."""


def verify_spec(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: object,
    draws: int,
    seed: int,
    tolerance: float,
    outputs: Kept | None,
) -> tuple[float, str]:
    """See `PermutationSpec.verify`; also say what was not computed in float64, if anything."""
    from gpu_align._symmetry._permutation import Permutation

    if not spec.keys <= model.state_dict().keys():
        model = unwrapped(model)
    generator = torch.Generator().manual_seed(seed)
    arguments = as_arguments(example_inputs)
    reference = Reference(model, arguments, kept=outputs)
    state = {k: t for k, t in model.state_dict().items() if k in spec.keys}
    as_it_is = reference.outputs(state)
    if _difference(as_it_is, reference.outputs(state)) > 0:
        raise ModelError(
            "the model gives different outputs for the same inputs (dropout or noise that "
            "evaluation mode does not switch off, or a buffer that forward changes); make it "
            "deterministic"
        )
    if reference.shortened:
        tolerance = max(tolerance, SHORT_TOLERANCE)
    worst = 0.0
    for _ in range(draws):
        permutation = _without_kept_beginnings(Permutation.random(spec, generator=generator))
        units, rows = _random_scales(spec, generator)
        phases = _random_phases(spec, generator)
        for weights in (state, _with_noise(state, generator)):
            # Units move in the dtype of the weights, which is shorter; scales need float64.
            moved = {name: double(t) for name, t in permutation.apply(weights).items()}
            moved = shift_phases(spec, rescale(spec, moved, units, rows), phases)
            before = as_it_is if weights is state else reference.outputs(weights)
            worst = max(worst, _difference(before, reference.outputs(moved)))
    if not worst <= tolerance:
        raise SpecError(
            f"the spec does not describe symmetries of this model: a random one (permutation, "
            f"signs, scales and phases) changes the outputs by {worst:.3g} relative (accepted: "
            f"{tolerance:g}); the spec is of another model, or a rule is wrong"
        )
    if draws:
        _verify_other_sizes(_on_host(reference, arguments), weights, moved, tolerance)
    note = f"checked to {tolerance:.1e}: {reference.short_ops()}"
    return worst, note if reference.shortened else ""


def _without_kept_beginnings(permutation: "Permutation") -> "Permutation":
    """Return a permutation turned round until the last unit of each group comes first.

    So it moves units into and out of any first part of a group, as a cut to a size makes it, which
    a drawn one of few units often does not.
    """
    groups, perms = permutation.spec.groups, dict(permutation.perms)
    turned: dict[str, Tensor] = {}
    for name in sorted(groups, key=lambda name: groups[name].parent is not None):
        size, parent = groups[name].size, groups[name].parent
        rows = perms[name].reshape(-1, size)
        rows = rows if parent is None else rows[turned[parent]]
        first = (rows % size).argmax(1, keepdim=True) * (not groups[name].fixed)
        order = (torch.arange(size, device="cpu") + first) % size
        turned[name] = order[0]
        perms[name] = rows.gather(1, order).reshape(-1)
    return replace(permutation, perms=perms)


def _on_host(reference: Reference, arguments: Arguments) -> Reference:
    """Return the model to be run on the CPU: an index beyond a table would end a CUDA context."""
    if all(tensor.device.type == "cpu" for tensor in reference.own.values()):
        return reference
    cpu = torch.device("cpu")
    moved = tree_map(lambda x: x.to(cpu) if isinstance(x, Tensor) else x, arguments)
    return Reference(reference.model, moved, cpu, reference.kept)


def _verify_other_sizes(
    reference: Reference, before: StateDict, after: StateDict, tolerance: float
) -> None:
    """Check one symmetry on inputs of other sizes, as far as the model takes them.

    Raises:
        SizeError: the outputs change by more than `tolerance`, and not by rounding alone.
    """

    def accepts(arguments: Arguments) -> bool:
        try:
            first = reference.outputs(before, arguments)
        except ModelError:
            return False
        if any(_is_unknown(output) for output in first):
            return False
        difference = _difference(first, reference.outputs(after, arguments))
        if difference <= tolerance:
            return True
        rounded = {name: _rounded(tensor) for name, tensor in before.items()}
        if _difference(first, reference.outputs(rounded, arguments)) > tolerance / 10:
            return False
        shapes = [list(leaf.shape) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        raise SizeError(
            "the spec describes symmetries for inputs of the traced shape only: on inputs of the "
            f"shapes {shapes} a random one changes the outputs by {difference:.3g} relative "
            f"(accepted: {tolerance:g}); pin what is cut to the size of the inputs, or pass "
            "verify=False if no other size is ever used"
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's own, about sizes that it was not made for
        try_other_sizes(reference.arguments, accepts)


def _is_unknown(output: Tensor) -> bool:
    floating = torch.is_floating_point(output) or torch.is_complex(output)
    return floating and output.numel() > 0 and not bool(output.isfinite().any())


def _rounded(tensor: Tensor) -> Tensor:
    """Return a tensor with errors as rounding makes them in a few ops."""
    if not torch.is_floating_point(tensor):
        return tensor
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
    return tensor.double() * (1 + 1e-14 * noise.to(tensor.device, torch.float64))


def _random_scales(
    spec: PermutationSpec, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scales between 1/2 and 2 for the units of scaled groups and rows of norm scales."""

    def draw(count: int) -> Tensor:
        return 2 ** (
            2 * torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") - 1
        )

    units = {name: draw(spec.units(name)) for name, group in spec.groups.items() if group.scaled}
    rows = {scale.weight: draw(spec.tensors[scale.mean].shape[0]) for scale in spec.norm_scales}
    return units, rows


def _random_phases(spec: PermutationSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """Return up to two periods to either side for the units of groups with a phase."""
    return {
        name: torch.randint(-4, 5, (spec.units(name),), generator=generator, device="cpu")
        for name in spec.phases
    }


def _with_noise(state: StateDict, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the state dict with noise on its floats, so that no two units are alike.

    Tied names keep sharing their values, and what is nowhere negative (a variance) stays so.
    """
    noisy: dict[object, Tensor] = {}
    for tensor in state.values():
        if torch.is_floating_point(tensor) and memory_of(tensor) not in noisy:
            noisy[memory_of(tensor)] = _noise(tensor, generator)
    return {name: noisy.get(memory_of(tensor), tensor) for name, tensor in state.items()}


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randn((2, *tensor.shape), generator=generator, dtype=torch.float32, device="cpu")
    wide = torch.promote_types(tensor.dtype, torch.float32)
    draw = draw.to(tensor.device, wide)
    added = draw[1].abs() if bool((tensor >= 0).all()) else draw[1]
    return tensor.to(wide) * torch.exp(0.1 * draw[0]) + 0.1 * added


def _relative(a: Tensor, b: Tensor) -> float:
    """Return max |b - a| / |a|, small |a| counted as typical ones.

    What is not finite must be the same in both.
    """
    if not (torch.is_floating_point(a) or torch.is_complex(a)):
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.numel() == 0:
        return 0.0
    finite = a.isfinite()
    if not bool(finite.any()):
        # Nothing can be compared, and that is no proof.
        return float("inf")
    agrees = (a == b) | (a.isnan() & b.isnan())
    if not bool((agrees | (finite & b.isfinite())).all()):
        return float("inf")
    gap = torch.where(agrees, 0.0, (b - a).abs())
    scale = torch.where(finite, a.abs(), 0.0).clamp_min(_typical(a[finite].abs()))
    return float((gap / scale).max())


def _relative_each(a: Tensor, b: Tensor) -> Tensor:
    """Return `_relative` of each pair of two stacks, float64 [m]."""
    count = len(a)
    a, b = a.reshape(count, -1), b.reshape(count, -1)
    if not (torch.is_floating_point(a) or torch.is_complex(a)):
        return torch.where((a == b).all(1), 0.0, math.inf).double()
    if a.shape[1] == 0:
        return torch.zeros(count, dtype=torch.float64, device=a.device)
    finite, sizes = a.isfinite(), a.abs()
    agrees = (a == b) | (a.isnan() & b.isnan())
    comparable = finite.any(1) & (agrees | (finite & b.isfinite())).all(1)
    counted = torch.where(finite & (sizes > 0), sizes, math.inf)
    number = counted.isfinite().sum(1, keepdim=True)
    typical = counted.sort(1).values.gather(1, (number // 10).clamp_max(a.shape[1] - 1))
    typical = torch.where(number > 0, typical, torch.finfo(torch.float64).tiny)
    gap = torch.where(agrees, 0.0, (b - a).abs())
    scale = torch.maximum(torch.where(finite, sizes, 0.0), typical)
    return torch.where(comparable, (gap / scale).amax(1), math.inf).double()


def _typical(sizes: Tensor) -> float:
    """Return a size that most outputs have, so that a few huge ones (masks) hide nothing."""
    nonzero = sizes[sizes > 0]
    if len(nonzero) == 0:
        return torch.finfo(torch.float64).tiny
    return float(nonzero.kthvalue(1 + len(nonzero) // 10).values)
