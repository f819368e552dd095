"""align: from two networks to a permutation with its certificate."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn

from gpu_align._backend import Engine, choose_engine, versions
from gpu_align._certificate import cost_matrix, group_reports
from gpu_align._checkpoint import load_checkpoint
from gpu_align._errors import InputError
from gpu_align._permutation import Permutation
from gpu_align._problem import AlignmentProblem, Metric, lower_bound
from gpu_align._result import AlignmentResult
from gpu_align._search import (
    Budget,
    Outcome,
    Portfolio,
    ProgressCallback,
    Search,
    SearchStore,
    run_search,
)
from gpu_align._symmetry import PermutationSpec, chain_spec, discover
from gpu_align._symmetry._spec import StateDict
from gpu_align._symmetry._verify import output_difference, tied_names

Network = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
FunctionCheck = Callable[[StateDict, StateDict], float]


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
    source: list[Network] | tuple[Network, ...],
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
) -> list[AlignmentResult]: ...


def align(
    source: Network | list[Network] | tuple[Network, ...],
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
) -> AlignmentResult | list[AlignmentResult]:
    """Find the permutation of the source's units that brings it closest to the target.

    Args:
        source: the network whose units are reordered: a module, a state dict, or the path of a
            checkpoint; or a list of them, aligned to one target in one batch.
        target: the network that stays.
        spec: the symmetries of both. Default: discovered from whichever network is a module,
            which needs `example_inputs`; without a module the state dict must be a plain chain.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        search: how to look; default `Portfolio.for_problem`.
        metric: "l2", "normalized", "standardized", "row" or a Metric.
        device: "auto", "cpu" or "cuda".
        seed: of the search; same seed, same result, unless a budget of seconds ends it.
        budget: of sweeps or seconds.
        progress: called after every step of the search.

    Returns:
        The result, or a list of results for a list of sources. `result.state_dict` computes the
        same function as the source.

    Raises:
        InputError: an argument cannot be used; its children SpecError, CheckpointError,
            ModelError and UnavailableError say what is wrong.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise InputError("expected at least one source to align, got an empty list")
    engine = choose_engine(device)
    states = [_state_dict(network) for network in sources]
    target_state = _state_dict(target)
    model = next((n for n in (target, *sources) if isinstance(n, nn.Module)), None)
    if spec is None:
        if model is None:
            spec = chain_spec(target_state)
        elif example_inputs is None:
            raise InputError(
                "a module was given without example_inputs, which tracing needs; pass them, or a "
                "spec, or module.state_dict() to have it read as a plain chain"
            )
        else:
            spec = discover(model, example_inputs)
    for network in (*sources, target):
        if isinstance(network, nn.Module):
            _check_ties(network, spec)
    checks = [
        function_check(network if isinstance(network, nn.Module) else model, example_inputs)
        for network in sources
    ]
    results = align_state_dicts(
        states,
        target_state,
        spec,
        search=search,
        metric=metric,
        engine=engine,
        seed=seed,
        budget=budget,
        progress=progress,
        checks=checks,
    )
    return results if isinstance(source, list | tuple) else results[0]


def align_state_dicts(
    sources: Sequence[StateDict],
    target: StateDict,
    spec: PermutationSpec,
    *,
    search: Search | None,
    metric: str | Metric,
    engine: Engine,
    seed: int,
    budget: Budget | None,
    progress: ProgressCallback | None,
    checks: Sequence[FunctionCheck | None],
    store: SearchStore | None = None,
) -> list[AlignmentResult]:
    """Align state dicts whose spec is known; `checks` compare each source before and after."""
    problem = AlignmentProblem(sources, target, spec, metric=metric, engine=engine)
    if search is None:
        patient = budget is not None and budget.seconds is not None
        search = Portfolio.for_problem(problem, patient=patient)
    outcome = run_search(search, problem, seed=seed, budget=budget, progress=progress, store=store)
    exact = AlignmentProblem(sources, target, spec, metric=metric, dtype=torch.float64)
    bounds = lower_bound(exact)
    results = []
    for model, (source, check) in enumerate(zip(sources, checks, strict=True)):
        permutation = problem.permutation(outcome.best, model)
        moved = permutation.apply(source)
        reports = group_reports(exact, permutation, model)
        difference = None if check is None else check(source, moved)
        results.append(
            AlignmentResult(
                permutation=permutation,
                state_dict=moved,
                metric=exact.metric.name,
                distance=exact.distance(permutation, model),
                distance_before=exact.distance(Permutation.identity(spec), model),
                lower_bound=float(bounds[model]),
                groups=reports,
                function_difference=difference,
                function_note=_function_note(check),
                cost_matrix=cost_matrix(exact, permutation, reports, model),
                history=outcome.history,
                search=_winner(search, outcome, model),
                status=outcome.status,
                seconds=outcome.seconds,
                assignments=outcome.assignments,
                seed=seed,
                device=str(engine),
                versions=versions(),
                log10_symmetries=spec.log10_symmetries,
                origin=spec.origin,
            )
        )
    return results


def _state_dict(network: Network) -> StateDict:
    if isinstance(network, nn.Module):
        return {k: t for k, t in network.state_dict().items() if isinstance(t, Tensor)}
    if isinstance(network, str | os.PathLike):
        return load_checkpoint(network).tensors
    if isinstance(network, Mapping):
        for name, value in network.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"expected tensors in the state dict, got {type(value).__name__} for {name!r}"
                )
        return {name: tensor.detach() for name, tensor in network.items()}
    raise InputError(
        f"expected a module, a state dict or the path of a checkpoint, got {type(network).__name__}"
    )


def _check_ties(model: nn.Module, spec: PermutationSpec) -> None:
    """Check that what a module shares is permuted as one."""
    for names in tied_names(model):
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


def _function_note(check: FunctionCheck | None) -> str:
    if check is None:
        return "not checked: no model with example inputs was given"
    return "outputs of the source before and after, float64, on the example inputs"


def _winner(search: Search, outcome: Outcome, model: int) -> str:
    """Name the search that the best hypothesis descends from, and the stage that finished it."""
    if not isinstance(search, Portfolio):
        return search.name
    origin = search.describe(int(outcome.best.origin[model]))
    if len(outcome.best) > 1:
        return origin  # the history is that of all models together
    best = outcome.history[-1].best_distance
    last = next((e.stage for e in outcome.history if e.best_distance <= best * (1 + 1e-6)), origin)
    return origin if last in (origin, search.name) else f"{origin}, refined by {last}"
