"""Function preservation: does a permuted state dict compute the same outputs?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from gpu_align._errors import ModelError, SpecError
from gpu_align._symmetry._gauge._apply import rescale
from gpu_align._symmetry._spec import PermutationSpec, StateDict, memory_of


def as_arguments(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as positional and keyword arguments.

    A tensor is one argument, a tuple are positional ones, a dict keyword ones, and a pair of a
    tuple and a dict are both.

    Raises:
        ModelError: they are none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        if [type(part) for part in example_inputs] == [tuple, dict]:
            return example_inputs[0], example_inputs[1]
        return tuple(example_inputs), {}
    raise ModelError(
        "expected example inputs as a tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments, got {type(example_inputs).__name__}"
    )


def output_difference(
    model: nn.Module, example_inputs: object, first: StateDict, second: StateDict
) -> float:
    """Return how far the outputs under two state dicts are apart, computed in float64.

    Args:
        model: the module; it is run in evaluation mode and left as it was.
        example_inputs: see `as_arguments`.
        first, second: state dicts of the model; names that are missing keep the model's values.

    Returns:
        max |y2 - y1| / |y1| over all floating-point outputs, where outputs smaller than a tenth
        of the others count as large as these; inf where integer outputs differ.

    Raises:
        ModelError: the forward fails.
    """
    return _Reference(model, example_inputs).difference(first, second)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode and give each its own mode back.

    An exported program has no modes: it stays as it was exported.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _InDouble(TorchFunctionMode):
    """Keep in float64 whatever the forward casts to a shorter floating-point type."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        args, kwargs = tree_map(_lengthen, (args, kwargs or {}))
        return func(*args, **kwargs)


def _lengthen(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return _double(value)


class _Reference:
    """A model and its inputs, to be run in float64 under several state dicts."""

    def __init__(self, model: nn.Module, example_inputs: object) -> None:
        self.model = model
        self.own = {
            name: _double(tensor)
            for name, tensor in (
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            )
        }
        self.ties = tied_names(model)
        self.places = _places(model)
        self.args, self.kwargs = tree_map(_double, as_arguments(example_inputs))

    def outputs(self, state: StateDict) -> list[Tensor]:
        """Run the model under a state dict and return its tensor outputs."""
        double = {
            name: _double(tensor.to(self.own[name].device) if name in self.own else tensor)
            for name, tensor in state.items()
        }
        for names in self.ties:
            # A checkpoint may hold a shared tensor once, under any of its names.
            held = next((double[name] for name in names if name in double), None)
            double |= {name: held for name in names if held is not None and name not in double}
        # A place named twice would be given back what it was given first.
        given = {k: t for k, t in (self.own | double).items() if self.places.get(k, k) == k}
        try:
            with torch.no_grad(), evaluation_mode(self.model), _InDouble():
                result = torch.func.functional_call(
                    self.model, given, self.args, self.kwargs, tie_weights=False
                )
        except Exception as error:
            raise ModelError(
                f"the model's forward fails in float64: {type(error).__name__}: {error}"
            ) from error
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs:
            raise ModelError(
                f"the model returns no tensors that can be compared, but {type(result).__name__}; "
                "return tensors, or register the type with torch.utils._pytree"
            )
        return outputs

    def difference(self, first: StateDict, second: StateDict) -> float:
        """See `output_difference`."""
        pairs = zip(self.outputs(first), self.outputs(second), strict=True)
        return max((_relative(a, b) for a, b in pairs), default=0.0)


def verify_spec(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: object,
    draws: int,
    seed: int,
    tolerance: float,
) -> float:
    """See `PermutationSpec.verify`."""
    from gpu_align._permutation import Permutation

    generator = torch.Generator().manual_seed(seed)
    reference = _Reference(model, example_inputs)
    state = {k: t for k, t in model.state_dict().items() if k in spec.keys}
    if reference.difference(state, state) > 0:
        raise ModelError(
            "the model gives different outputs for the same inputs (dropout or noise that "
            "evaluation mode does not switch off, or a buffer that forward changes); make it "
            "deterministic"
        )
    worst = 0.0
    for _ in range(draws):
        permutation = Permutation.random(spec, generator=generator)
        units, rows = _random_scales(spec, generator)
        for weights in (state, _with_noise(state, generator)):
            double = {name: _double(tensor) for name, tensor in weights.items()}
            moved = rescale(spec, permutation.apply(double), units, rows)
            worst = max(worst, reference.difference(weights, moved))
    if not worst <= tolerance:
        raise SpecError(
            f"the spec does not describe symmetries of this model: a random one (permutation, "
            f"signs and scales) changes the outputs by {worst:.3g} relative (accepted: "
            f"{tolerance:g}); the spec is of another model, or a rule is wrong"
        )
    return worst


def _random_scales(
    spec: PermutationSpec, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scales between 1/2 and 2 for the units of scaled groups and rows of norm scales."""

    def draw(count: int) -> Tensor:
        return 2 ** (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)

    units = {name: draw(spec.units(name)) for name, group in spec.groups.items() if group.scaled}
    rows = {scale.weight: draw(spec.tensors[scale.mean].shape[0]) for scale in spec.norm_scales}
    return units, rows


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
    draw = torch.randn((2, *tensor.shape), generator=generator, dtype=torch.float32)
    draw = draw.to(tensor.device, torch.float64)
    added = draw[1].abs() if bool((tensor >= 0).all()) else draw[1]
    return tensor.double() * torch.exp(0.1 * draw[0]) + 0.1 * added


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the state-dict names of each tensor that a module holds under several names."""
    names: dict[object, list[str]] = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            names.setdefault(memory_of(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _places(model: nn.Module) -> dict[str, str]:
    """Return for each name of a parameter or buffer the first name of its place.

    A submodule with two names gives each of its places two.
    """
    first: dict[tuple[int, str], str] = {}
    places = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for attribute, _ in held:
            name = f"{prefix}.{attribute}" if prefix else attribute
            places[name] = first.setdefault((id(module), attribute), name)
    return places


def _double(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and torch.is_floating_point(value)
    return value.double() if is_float else value


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
    gap = torch.where(agrees, 0.0, (b - a).abs()).nan_to_num(nan=float("inf"))
    scale = a.abs().clamp_min(_typical(a[finite].abs()))
    return float((gap / scale).nan_to_num(nan=0.0, posinf=float("inf")).max())


def _typical(sizes: Tensor) -> float:
    """Return a size that most outputs have, so that a few huge ones (masks) hide nothing."""
    nonzero = sizes[sizes > 0]
    if len(nonzero) == 0:
        return torch.finfo(torch.float64).tiny
    return float(nonzero.kthvalue(1 + len(nonzero) // 10).values)
