"""align: from networks to permutations with their certificates."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, overload

from torch import nn

from gpu_align._align._hugging_face import model_beside
from gpu_align._align._many import Aligned, align_state_dicts
from gpu_align._align._networks import Model, Network, check_ties, state_of
from gpu_align._align._result import AlignmentFailure, AlignmentResult
from gpu_align._align._settings import Settings
from gpu_align._checkpoint import rename
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._problem import Metric, as_metric
from gpu_align._search import Budget, ProgressCallback, Search, SearchStore
from gpu_align._status import Status
from gpu_align._symmetry import Kept, PermutationSpec, StateDict, chain_spec

T = TypeVar("T")
Networks = list[Network] | tuple[Network, ...] | Iterator[Network]


@overload
def align(
    source: Network,
    target: Network,
    *,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
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
    outputs: Kept | None = None,
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
    outputs: Kept | None = None,
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
            which needs `example_inputs`; else from the model of Hugging Face transformers that a
            `config.json` beside a checkpoint names; else the state dict must be a plain chain.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; made for a
            model of transformers.
        outputs: the outputs of the module that must stay as they are: a name (key or field) or
            number, or several. Default: all of them; of a model of transformers with logits all
            but states beside them.
        search: how to look; default `Portfolio.for_problem`, which spends on each of several
            sources what it would spend on it alone: for thousands of them name a cheaper one.
        metric: "l2", "normalized", "standardized", "row" or a Metric.
        device: "auto", "cpu" or "cuda".
        seed: of the search; same seed, same result, unless a budget of seconds ends it.
        budget: of steps or seconds; several batches share the seconds.
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
        sources, is_single = list(source), False
    else:
        sources, is_single = [source], True
    found = align_networks(
        sources,
        target,
        Settings(search, as_metric(metric), choose_engine(device), seed, budget, progress),
        spec=spec,
        example_inputs=example_inputs,
        outputs=outputs,
        throw=is_single,
    )
    return found[0].unwrap() if is_single else found


def align_networks(
    sources: Sequence[Network],
    target: Network,
    settings: Settings,
    *,
    spec: PermutationSpec | None = None,
    model: Model | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    throw: bool = False,
    store: SearchStore | None = None,
) -> list[Aligned]:
    """Align networks to one; see `align`, which makes the settings.

    Args:
        sources, target, spec, example_inputs, outputs: as for `align`.
        settings: how.
        model: what is traced, and run for networks that are no modules. Default: one of the
            networks with the example inputs, if a module is among them.
        throw: whether the error of a source is raised, in place of a failure in its place.
        store: where the search of a single source is kept, and resumed from.
    """
    if not sources:
        raise InputError("expected at least one source to align, got an empty list")
    networks = dict(enumerate(sources))
    target_state = state_of(target)
    states, unread = _attempt(state_of, networks, throw=throw)
    readable = {index: networks[index] for index in states}
    if model is None:
        module = _some_module(target, target_state, readable.values())
        if module is not None:
            model = Model(module, example_inputs, outputs)
        elif spec is None:
            described = [target, *readable.values()]
            model = model_beside(described, target_state, example_inputs, outputs)
    if spec is None:
        spec = chain_spec(target_state) if model is None else model.find_spec()
    check_ties(target, spec)
    untied, tied = _attempt(partial(check_ties, spec=spec), readable, throw=throw)
    renamed = {index: rename(states[index], spec.keys) for index in untied}
    outcomes = align_state_dicts(
        [renamed[index].state for index in untied],
        rename(target_state, spec.keys).state,
        spec,
        settings,
        models=[_model_of(networks[index], model) for index in untied],
        store=store,
    )
    found: dict[int, Aligned] = {**unread, **tied}
    for index, outcome in zip(untied, outcomes, strict=True):
        if isinstance(outcome, AlignmentFailure):
            outcome = replace(outcome, index=index, name=_name(networks[index]))
        else:
            outcome = replace(outcome, state_dict=renamed[index].restore(outcome.state_dict))
        found[index] = outcome
    return [found[index] for index in networks]


def _attempt(
    function: Callable[[Network], T], networks: Mapping[int, Network], *, throw: bool
) -> tuple[dict[int, T], dict[int, AlignmentFailure]]:
    """Apply a function to each source; return its values, and the failures of the others."""
    values: dict[int, T] = {}
    failures: dict[int, AlignmentFailure] = {}
    for index, network in networks.items():
        try:
            values[index] = function(network)
        except InputError as error:
            if throw:
                raise
            failures[index] = AlignmentFailure(index, _name(network), error, Status.UNUSABLE)
    return values, failures


def _name(network: Network) -> str | None:
    return os.fspath(network) if isinstance(network, str | os.PathLike) else None


def _some_module(
    target: Network, target_state: StateDict, sources: Iterable[Network]
) -> nn.Module | None:
    """Return the target, else the first source of its names and shapes, else any, that is one."""
    if isinstance(target, nn.Module):
        return target
    modules = [source for source in sources if isinstance(source, nn.Module)]
    shapes = {name: tensor.shape for name, tensor in target_state.items()}

    def fits(module: nn.Module) -> bool:
        state = state_of(module)
        floating = (tensor for tensor in state.values() if tensor.is_floating_point())
        return {name: tensor.shape for name, tensor in state.items()} == shapes and all(
            bool(tensor.isfinite().all()) for tensor in floating
        )

    return next(filter(fits, modules), modules[0] if modules else None)


def _model_of(network: Network, model: Model | None) -> Model | None:
    """Return what a network is run in: itself or the model; None if there is nothing to run."""
    if model is None or model.inputs is None:
        return None
    return replace(model, network=network) if isinstance(network, nn.Module) else model
