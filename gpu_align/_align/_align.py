"""align: from two networks to a permutation with its certificate."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar, overload

from torch import Tensor, nn

from gpu_align._align._many import Aligned, FunctionCheck, align_state_dicts
from gpu_align._align._result import AlignmentFailure, AlignmentResult
from gpu_align._checkpoint import load_checkpoint, rename
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._problem import Metric
from gpu_align._process import MODULES
from gpu_align._search import Budget, ProgressCallback, Search
from gpu_align._status import Status
from gpu_align._symmetry import (
    PermutationSpec,
    StateDict,
    chain_spec,
    discover,
    output_difference,
    tied_names,
)

Network = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
T = TypeVar("T")
Networks = list[Network] | tuple[Network, ...] | Iterator[Network]


@overload
def align(
    source: Network,
    target: Network,
    *,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    search: Search | None = None,
    metric: str | Metric = "l2",
    device: str = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
) -> AlignmentResult: ...


@overload
def align(
    source: Networks,
    target: Network,
    *,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    search: Search | None = None,
    metric: str | Metric = "l2",
    device: str = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
) -> list[AlignmentResult | AlignmentFailure]: ...


def align(
    source: Network | Networks,
    target: Network,
    *,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    search: Search | None = None,
    metric: str | Metric = "l2",
    device: str = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
) -> AlignmentResult | list[AlignmentResult | AlignmentFailure]:
    """Find the permutation of the source's units that brings it closest to the target.

    Args:
        source: the network whose units are reordered: a module, a state dict, or the path of a
            checkpoint; or a list, tuple or iterator of them, aligned to one target together, in
            as few batches as fit the memory.
        target: the network that stays.
        spec: the symmetries of both. Default: discovered from whichever network is a module,
            which needs `example_inputs`; without a module the state dict must be a plain chain.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        search: how to look; default `Portfolio.for_problem`, which spends on each of several
            sources what it would spend on it alone: for thousands of them name a cheaper one.
        metric: "l2", "normalized", "standardized", "row" or a Metric.
        device: "auto", "cpu" or "cuda".
        seed: of the search; same seed, same result, unless a budget of seconds ends it.
        budget: of sweeps or seconds; several batches share the seconds.
        progress: called after every step of the search; of several batches its stage says which.

    Returns:
        The result; its `state_dict` computes the same function as the source. For several sources
        a list in their order, in which an `AlignmentFailure` stands for each source that cannot
        be read, does not fit the spec, is not finite or cannot be solved; such a source does not
        stop the others, and if all are such the list has nothing else.

    Raises:
        InputError: an argument other than one of several sources cannot be used; its children
            SpecError, CheckpointError, ModelError and UnavailableError say what is wrong.
        AssignmentError: the assignments of a single source could not be solved.
    """
    if isinstance(source, list | tuple | Iterator):
        networks = dict(enumerate(source))
        if not networks:
            raise InputError("expected at least one source to align, got an empty list")
        attempt = _failures_as_values
    else:
        networks, attempt = {0: source}, _failures_raised
    engine = choose_engine(device)
    target_state = _state_dict(target)
    states, unread = attempt(_state_dict, networks)
    readable = {index: networks[index] for index in states}
    model = _model(target, target_state, readable.values())
    if spec is None:
        spec = _find_spec(target_state, model, example_inputs)
    _check_ties(target, spec)
    untied, tied = attempt(partial(_check_ties, spec=spec), readable)
    renamed = {index: rename(states[index], spec.keys) for index in untied}
    outcomes = align_state_dicts(
        [renamed[index].state for index in untied],
        rename(target_state, spec.keys).state,
        spec,
        search=search,
        metric=metric,
        engine=engine,
        seed=seed,
        budget=budget,
        progress=progress,
        checks=[_check_of(networks[index], model, example_inputs) for index in untied],
    )
    found: dict[int, Aligned] = {**unread, **tied}
    for index, outcome in zip(untied, outcomes, strict=True):
        if isinstance(outcome, AlignmentFailure):
            outcome = replace(outcome, index=index, name=_name(networks[index]))
        else:
            outcome = replace(outcome, state_dict=renamed[index].restore(outcome.state_dict))
        found[index] = outcome
    if attempt is _failures_raised:
        return found[0].unwrap()
    return [found[index] for index in networks]


def _failures_raised(
    function: Callable[[Network], T], networks: Mapping[int, Network]
) -> tuple[dict[int, T], dict[int, AlignmentFailure]]:
    """Apply a function to each source; for a single one, whose failure is the caller's."""
    return {index: function(network) for index, network in networks.items()}, {}


def _failures_as_values(
    function: Callable[[Network], T], networks: Mapping[int, Network]
) -> tuple[dict[int, T], dict[int, AlignmentFailure]]:
    """Apply a function to each source; return its values, and the failures of the others."""
    values: dict[int, T] = {}
    failures: dict[int, AlignmentFailure] = {}
    for index, network in networks.items():
        try:
            values[index] = function(network)
        except InputError as error:
            failures[index] = AlignmentFailure(index, _name(network), error, Status.UNUSABLE)
    return values, failures


def _name(network: Network) -> str | None:
    return os.fspath(network) if isinstance(network, str | os.PathLike) else None


def _model(
    target: Network, target_state: StateDict, sources: Iterable[Network]
) -> nn.Module | None:
    """Return a module to trace, and to run for the networks that are none.

    The target, else the first source of the target's names and shapes, else any.
    """
    if isinstance(target, nn.Module):
        return target
    modules = [source for source in sources if isinstance(source, nn.Module)]
    shapes = {name: tensor.shape for name, tensor in target_state.items()}

    def fits(module: nn.Module) -> bool:
        state = _state_dict(module)
        floating = (tensor for tensor in state.values() if tensor.is_floating_point())
        return {name: tensor.shape for name, tensor in state.items()} == shapes and all(
            bool(tensor.isfinite().all()) for tensor in floating
        )

    return next(filter(fits, modules), modules[0] if modules else None)


def _find_spec(
    target: StateDict, model: nn.Module | None, example_inputs: object
) -> PermutationSpec:
    if model is None:
        return chain_spec(target)
    if example_inputs is None:
        raise InputError(
            "a module was given without example_inputs, which tracing needs; pass them, or a "
            "spec, or module.state_dict() to have it read as a plain chain"
        )
    return discover(model, example_inputs)


def _check_of(
    network: Network, model: nn.Module | None, example_inputs: object
) -> FunctionCheck | None:
    return function_check(network if isinstance(network, nn.Module) else model, example_inputs)


def _state_dict(network: Network) -> StateDict:
    if isinstance(network, nn.Module):
        with MODULES:
            return {k: t for k, t in network.state_dict().items() if isinstance(t, Tensor)}
    if isinstance(network, str | os.PathLike):
        return load_checkpoint(network).tensors
    if isinstance(network, Mapping):
        for name, value in network.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"expected tensors in the state dict, got {type(value).__name__} for {name!r}"
                )
        return {
            name: tensor.detach() if tensor.requires_grad or type(tensor) is not Tensor else tensor
            for name, tensor in network.items()
        }
    raise InputError(
        f"expected a module, a state dict or the path of a checkpoint, got {type(network).__name__}"
    )


def _check_ties(model: Network, spec: PermutationSpec) -> None:
    """Check that what a module shares is permuted as one."""
    if not isinstance(model, nn.Module):
        return
    with MODULES:
        tied = tied_names(model)
    for names in tied:
        if len({spec.ties.get(name, name) for name in names}) > 1:
            raise InputError(
                f"a module shares one tensor under the names {', '.join(names)}, the spec does not "
                "tie them; pass a spec discovered from this module, or untie the module"
            )


def function_check(model: nn.Module | None, example_inputs: object) -> FunctionCheck | None:
    """Return what compares the outputs under two state dicts; None without model and inputs."""
    if model is None or example_inputs is None:
        return None
    return lambda before, after: output_difference(model, example_inputs, before, after)
