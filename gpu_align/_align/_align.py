"""align: from networks to permutations with their certificates."""

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from gpu_align._align._alpha import AlphaChoice, Find, Midpoints
from gpu_align._align._evidence import Correlations, Correlator, Evidence
from gpu_align._align._hugging_face import model_beside
from gpu_align._align._many import Aligned, align_state_dicts
from gpu_align._align._networks import Model, Network, check_ties, checked_keys, state_of
from gpu_align._align._result import AlignmentFailure, AlignmentResult
from gpu_align._align._settings import Settings, checked_spec
from gpu_align._align._sources import Sources
from gpu_align._align._tensors import separate
from gpu_align._checkpoint import Renamed, rename
from gpu_align._errors import InputError, ModelError, SpecError
from gpu_align._problem import Metric, check_weights
from gpu_align._search import Budget, ProgressCallback, Search, SearchStore
from gpu_align._status import Status
from gpu_align._symmetry import Kept, PermutationSpec, StateDict, chain_spec

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

_TRACED = 3
"""Most modules that are tried for the symmetries: one may be broken, all of them rarely are."""


@overload
def align(  # type: ignore[overload-overlap]
    source: Network,
    target: Network,
    *,
    key: str | None = None,
    target_key: str | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
    evidence: str | None = None,
    data: object = None,
    alpha: float | Literal["auto"] | None = None,
    prove: float | None = None,
) -> AlignmentResult: ...


@overload
def align(  # type: ignore[overload-overlap]
    source: Mapping[Key, Network],
    target: Network,
    *,
    key: str | None = None,
    target_key: str | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
    evidence: str | None = None,
    data: object = None,
    alpha: float | Literal["auto"] | None = None,
    prove: float | None = None,
) -> dict[Key, AlignmentResult | AlignmentFailure]: ...


@overload
def align(
    source: Iterable[Network],
    target: Network,
    *,
    key: str | None = None,
    target_key: str | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
    evidence: str | None = None,
    data: object = None,
    alpha: float | Literal["auto"] | None = None,
    prove: float | None = None,
) -> list[AlignmentResult | AlignmentFailure]: ...


def align(
    source: Network | Mapping[Key, Network] | Iterable[Network],
    target: Network,
    *,
    key: str | None = None,
    target_key: str | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: ProgressCallback | None = None,
    evidence: str | None = None,
    data: object = None,
    alpha: float | Literal["auto"] | None = None,
    prove: float | None = None,
) -> AlignmentResult | list[Aligned] | dict[Key, Aligned]:
    """Find the permutation of the source's units that brings it closest to the target.

    Where units may be negated (tanh, sin) signs are chosen too, and where the bias in front of a
    sine may be shifted by half periods (SIREN) phases. These are left as they are with evidence
    (but where alpha="auto" takes the weights alone), with a proof, which is over orders and signs,
    in searches by a loss, and with a metric to which a shift is something else; the result's
    `shifted` says so by None.

    Args:
        source: the network whose units are reordered: a module, a state dict, or the path of a
            checkpoint; or any iterable of them, a mapping of names to them, or a stack (tensors
            with a leading axis of models), aligned together, in as few batches as fit the memory.
        target: the network that stays.
        key: of the state dict in files that have several, see `load_checkpoint`.
        target_key: the same for the target, if it is not the same key.
        spec: the symmetries of both. Default: discovered from whichever network is a module,
            which needs `example_inputs`; else from the model of Hugging Face transformers that a
            `config.json` beside a checkpoint names; else the state dict must be a plain chain.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; made for a
            model of transformers.
        outputs: the outputs of the module that must stay as they are: a name (key or field) or
            number, or several. Default: all of them; of a model of transformers with logits all
            but states beside them.
        search: a search or its name on the command line; default `Portfolio.for_problem`, which
            spends on each source what it would spend on it alone: for thousands name a cheaper one.
        metric: "l2", "normalized", "standardized", "row" or a Metric.
        device: "auto", "cpu" or "cuda", or a `torch.device` of these.
        seed: of the search; same seed, same result, unless a budget of seconds ends it.
        budget: of steps or seconds; several batches share the seconds.
        progress: called after every step of the search; of several batches its stage says which.
        evidence: what tells which units are alike: "weights"; "activations", the correlations of
            the units on data, with the weights only for units that these do not tell apart; "both".
            Default: "both" if there are data. Distances and certificate are those of the weights.
        data: see `Data.of`, for instance a DataLoader of training data; of the part that is not
            held back the first 2000 examples are run, in a module among the networks.
        alpha: how much correlations count for "both", default 0.3. With 1 those of a group are
            worth in all what its weights are worth, in the order that the weights alone ask for.
            The best value depends on the networks. "auto" aligns by the weights alone, with 0.3 and
            with 1, and takes for each source what loses least half-way to the target, on the part
            of the data that is held back; these need targets. Seconds of the budget and of the
            proof are shared.
        prove: seconds, for each source, to prove that what was found is optimal, or how much closer
            another permutation could be at most; see `prove`. Default: the lower bound alone.

    Returns:
        The result; its `state_dict` computes the same function as the source, and shares no memory
        with it. For several sources a list in their order, or a dict with their names, with an
        `AlignmentFailure` in the place of each that cannot be read, compared or solved.

    Raises:
        InputError: an argument other than one of several sources cannot be used; its children
            SpecError, CheckpointError, ModelError and UnavailableError say what is wrong.
        AssignmentError: the assignments of a single source could not be solved.
    """
    sources = Sources.of(source, target)
    keys = checked_keys([*sources.networks, target], key, target_key)
    settings = Settings.of(search, metric, device, seed, budget, progress, prove)
    looked_at = Evidence.of(evidence, data, alpha, settings.seed)
    if looked_at is not None:
        settings = replace(settings, evidence=looked_at.beside_weights)
        example_inputs = looked_at.first_inputs if example_inputs is None else example_inputs
    found = align_networks(
        sources.networks,
        target,
        settings,
        keys=keys,
        spec=checked_spec(spec),
        example_inputs=example_inputs,
        outputs=outputs,
        names=sources.names,
        throw=sources.is_single,
    )
    return sources.collected([result.unwrap() for result in found] if sources.is_single else found)


def align_networks(
    sources: Sequence[Network],
    target: Network,
    settings: Settings,
    *,
    keys: tuple[str | None, str | None] = (None, None),
    spec: PermutationSpec | None = None,
    model: Model | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    names: Sequence[str | None] = (None,),
    throw: bool = False,
    store: SearchStore | None = None,
) -> list[Aligned]:
    """Align networks to one; see `align`, which makes the settings.

    Args:
        sources, target, spec, example_inputs, outputs: as for `align`.
        settings: how.
        keys: of the state dicts in the files of the sources and of the target.
        model: what is traced, and run for networks that are no modules. Default: one of the
            networks with the example inputs, if a module is among them.
        names: of the sources, for their results.
        throw: whether the error of a source is raised, in place of a failure in its place.
        store: where the search of a single source is kept, and resumed from.
    """
    if not sources:
        return []
    networks = dict(enumerate(sources))
    key, target_key = keys
    target_state = state_of(target, target_key)
    states, unread = _attempt(partial(state_of, key=key), networks, throw=throw)
    readable = {index: networks[index] for index in states}
    if model is None:
        model, spec = _found(target, target_state, readable.values(), example_inputs, outputs, spec)
    elif spec is None:
        spec = model.find_spec()
    check_ties(target, spec)
    untied, tied = _attempt(partial(check_ties, spec=spec), readable, throw=throw)
    renamed = {index: rename(states[index], spec.keys) for index in untied}
    named_target = rename(target_state, spec.keys).state
    measured, unlike = _correlations(
        {index: renamed[index].state for index in untied},
        *(named_target, spec, model, settings),
        throw=throw,
    )
    aligned = [index for index in untied if index not in unlike]
    correlations = None if measured is None else [measured[index] for index in aligned]

    def find(settings: Settings, correlations: Sequence[Correlations] | None) -> list[Aligned]:
        return align_state_dicts(
            [renamed[index].state for index in aligned],
            named_target,
            spec,
            settings,
            models=[_model_of(networks[index], model) for index in aligned],
            correlations=correlations,
            store=store,
        )

    outcomes = _outcomes(find, settings, correlations, model, named_target, store)
    found: dict[int, Aligned] = {**unread, **tied, **unlike}
    for index, outcome in zip(aligned, outcomes, strict=True):
        found[index] = _restored(outcome, renamed[index], states[index])
    return [replace(found[index], index=index, name=names[index]) for index in networks]


def _outcomes(
    find: Find,
    settings: Settings,
    correlations: Sequence[Correlations] | None,
    model: Model | None,
    target: StateDict,
    store: SearchStore | None,
) -> list[Aligned]:
    """Align by what the settings name; where alpha is left to be chosen, choose it."""
    judge = None if settings.evidence is None else settings.evidence.judge
    if judge is None or correlations is None:
        return find(settings, correlations)
    midpoints = Midpoints(model, target, judge, settings.engine.device)
    return AlphaChoice(settings, correlations, find, midpoints, store).run()


def _restored(outcome: Aligned, renamed: Renamed, given: StateDict) -> Aligned:
    """Return an outcome with its tensors called as they were given, in memory of their own."""
    if isinstance(outcome, AlignmentFailure):
        return outcome
    return replace(outcome, state_dict=separate(renamed.restore(outcome.state_dict), given))


def _correlations(
    states: Mapping[int, StateDict],
    target: StateDict,
    spec: PermutationSpec,
    model: Model | None,
    settings: Settings,
    *,
    throw: bool,
) -> tuple[dict[int, Correlations] | None, dict[int, AlignmentFailure]]:
    """Return how the units of each source correlate with the target's; None without evidence."""
    evidence = settings.evidence
    if evidence is None:
        return None, {}
    if evidence.known is not None:
        return {index: evidence.known[index] for index in states}, {}
    spec.validate(target, "target")
    check_weights(spec, target, "target")
    device = settings.engine.device
    correlator = Correlator(model, spec, target, evidence.examples, device, evidence.progress)
    return _attempt(correlator.of, states, throw=throw)


def _attempt(
    function: Callable[[Any], T], networks: Mapping[int, Network], *, throw: bool
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
            failures[index] = AlignmentFailure(index, None, error, Status.UNUSABLE)
    return values, failures


def _found(
    target: Network,
    target_state: StateDict,
    sources: Collection[Network],
    example_inputs: object,
    outputs: Kept | None,
    spec: PermutationSpec | None,
) -> tuple[Model | None, PermutationSpec]:
    """Return the model to trace and run, None if there is none, and the spec.

    A source that cannot be traced leaves it to the next one.
    """
    modules = _modules(target, target_state, sources)
    models = [Model(module, example_inputs, outputs) for module in modules]
    if spec is not None:
        return (models[0] if models else None), spec
    if not models:
        model = model_beside([target, *sources], target_state, example_inputs, outputs)
        return (None, chain_spec(target_state)) if model is None else (model, model.find_spec())
    refused: InputError | None = None
    for model in models[:_TRACED]:
        try:
            return model, model.find_spec()
        except (ModelError, SpecError) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _modules(
    target: Network, target_state: StateDict, sources: Iterable[Network]
) -> list[nn.Module]:
    """Return the target alone if it is a module, else the sources that are, likely ones first.

    These have the names and shapes of the target and are finite.
    """
    if isinstance(target, nn.Module):
        return [target]
    modules = [source for source in sources if isinstance(source, nn.Module)]
    shapes = {name: tensor.shape for name, tensor in target_state.items()}

    def fits(module: nn.Module) -> bool:
        state = state_of(module)
        floating = (tensor for tensor in state.values() if tensor.is_floating_point())
        return {name: tensor.shape for name, tensor in state.items()} == shapes and all(
            bool(tensor.isfinite().all()) for tensor in floating
        )

    fitting = list(itertools.islice(filter(fits, modules), _TRACED))
    return fitting or modules


def _model_of(network: Network, model: Model | None) -> Model | None:
    """Return what a network is run in: itself or the model; None if there is nothing to run."""
    if model is None or model.inputs is None:
        return None
    return replace(model, network=network) if isinstance(network, nn.Module) else model
