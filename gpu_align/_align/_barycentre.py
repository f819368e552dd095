"""barycentre: the models of a collection in one frame, none of them privileged."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from gpu_align._align._common_evidence import CommonEvidence
from gpu_align._align._hugging_face import model_beside
from gpu_align._align._networks import Model, Network, check_ties, checked_keys, state_of
from gpu_align._align._realign import Keep, Method, Rounds, as_state, made_now
from gpu_align._align._settings import Settings, checked_spec
from gpu_align._align._sources import name_of
from gpu_align._align._tensors import separate
from gpu_align._checkpoint import rename
from gpu_align._errors import InputError
from gpu_align._problem import unusable
from gpu_align._search import ProgressCallback, Search
from gpu_align._status import Status
from gpu_align._symmetry import (
    Kept,
    Permutation,
    PermutationSpec,
    StateDict,
    chain_spec,
    stack_size,
    unstacked,
)

_FEW = 32
"""Most models that are realigned one by one if nothing else is wanted."""


@dataclass(frozen=True)
class Barycentre:
    """A collection of models in a common frame, and their mean there.

    Attributes:
        permutations: of each model into the frame.
        state_dicts: each model in the frame; names, order and dtypes as they were.
        mean: the mean of the parameters, rounded to the dtypes of the first model; integers and
            running statistics are those of the first model.
        spreads: mean squared distance of the models to their mean: as given, after each round.
        status: how the rounds ended.
        names: of the models in a mapping, else their paths, None where there are none.
    """

    permutations: Sequence[Permutation]
    state_dicts: Sequence[dict[str, Tensor]]
    mean: dict[str, Tensor]
    spreads: Sequence[float]
    status: Status
    names: Sequence[str | None]

    @property
    def spread_before(self) -> float:
        """Mean squared distance of the models to their mean as they were given."""
        return self.spreads[0]

    @property
    def spread(self) -> float:
        """Mean squared distance of the models in the frame to their mean."""
        return self.spreads[-1]

    def between(self, source: int, target: int) -> Permutation:
        """Return what brings one model to another by way of the frame.

        Source: the factorised maps of C2M3 (Crisostomi et al., NeurIPS 2024), section 3.
        """
        return self.permutations[target].inverse().compose(self.permutations[source])

    def cycle_error(self) -> float:
        """Return the share of units that do not return over triangles, see `cycle_error`.

        It is 0 by construction, and computed here from the maps themselves.
        """
        count = len(self.permutations)
        return cycle_error(
            {(i, j): self.between(i, j) for i in range(count) for j in range(count) if i != j}
        )


def barycentre(
    sources: Iterable[Network] | Mapping[str, Network],
    spec: PermutationSpec | None = None,
    *,
    example_inputs: object = None,
    outputs: Kept | None = None,
    method: Method | None = None,
    start: int | None = 0,
    frame: int | None = None,
    rounds: int = 100,
    search: Search | str | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: ProgressCallback | None = None,
    key: str | None = None,
) -> Barycentre:
    """Align models to their own mean, again and again, until they come no closer to it.

    A round never raises the mean squared distance to the mean, so the rounds end. An interruption
    (Ctrl-C) leaves what the last whole round has found.

    Args:
        sources: modules, state dicts or paths of checkpoints; a mapping of names to them; or, with
            a spec, a stack (tensors with a leading axis of models).
        spec: the symmetries of all. Default: as for `align`, from the first module among them.
        example_inputs, outputs: as for `align`.
        method: "batch" aligns all models to the mean of all at once; "one_by_one" each, in a random
            order, to the mean of the others (MergeMany), which takes a search for each. Default:
            one by one up to 32 models, as the share that a model has in a mean of few holds it in
            its place.
        start: number of the model to which all are aligned first; None begins with their mean as
            they are given, which is Git Re-Basin's way.
        frame: number of the model whose units stay in their order; None for any order.
        rounds: most of them.
        search: in each round; by default coordinate descent, which is weight matching.
        device: "auto", "cpu" or "cuda", or a `torch.device` of these.
        seed: same seed, same result.
        progress: called after every step of every search; its stage names the round.
        key: of the state dict in files that have several, see `load_checkpoint`.

    Raises:
        InputError: there are no models, one of them cannot be used, or an argument cannot; its
            children say what is wrong.
        AssignmentError: an assignment could not be solved.

    Source: Git Re-Basin (Ainsworth et al., ICLR 2023), algorithm 3, for "one_by_one".
    """
    settings = Settings.of(search, "l2", device, seed, None, progress)
    names, networks = _collection(sources, checked_spec(spec))
    count = len(networks)
    method = method or ("one_by_one" if count <= _FEW else "batch")
    if method not in get_args(Method):
        raise InputError(f"expected a method among {get_args(Method)}, got method={method!r}")
    _check_number("start", start, count)
    _check_number("frame", frame, count)
    checked_keys(networks, key)
    given = [state_of(network, key) for network in networks]
    spec = _spec_of(networks, given, example_inputs, outputs) if spec is None else spec
    for network in networks:
        check_ties(network, spec)
    return common_frame(given, spec, settings, method, rounds, start, frame, names=names)


def common_frame(
    given: Sequence[StateDict],
    spec: PermutationSpec,
    settings: Settings,
    method: Method,
    rounds: int,
    start: int | None,
    frame: int | None,
    *,
    names: Sequence[str | None],
    keep: Keep = made_now,
    evidence: CommonEvidence | None = None,
) -> Barycentre:
    """Bring state dicts into one frame; see `barycentre`.

    Args:
        given: the models.
        spec, method, rounds, start, frame: as for `barycentre`.
        settings: search, engine, seed and progress.
        names: of the models.
        keep: where what each search finds is kept.
        evidence: what counts beside the weights; goes with "one_by_one". The spreads are less what
            it is worth.

    Raises:
        InputError: a model cannot be used.
    """
    renamed = [rename(state, spec.keys) for state in given]
    states = [each.state for each in renamed]
    for number, error in unusable(spec, states).items():
        raise InputError(f"{_called(number, names)} cannot be used: {error}") from error
    realign = Rounds(spec, settings, method, keep, evidence)
    found, spreads, status = realign.run(states, rounds, start)
    permutations = list(found.permutations)
    mean = as_state(spec, found.mean, found.states[0])
    if frame is not None:
        back = permutations[frame].inverse()
        permutations = [back.compose(permutation) for permutation in permutations]
        mean = back.apply(mean)
    moved = [p.apply(state) for p, state in zip(permutations, states, strict=True)]
    return Barycentre(
        permutations,
        [
            separate(own.restore(state), source)
            for own, state, source in zip(renamed, moved, given, strict=True)
        ],
        separate(renamed[0].restore(mean), given[0]),
        spreads,
        status,
        names,
    )


def cycle_error(maps: Mapping[tuple[int, int], Permutation]) -> float:
    """Return the share of units that do not come back to their place and sign over triangles.

    A unit goes from i to j, from j to k and from k to i, for all ordered i, j, k that differ.

    Args:
        maps: (i, j) -> the permutation of model i to model j, for every pair that differs.

    Returns:
        Between 0 and 1; 0 if there are fewer than three models.

    Source: cycle consistency in C2M3 (Crisostomi et al., NeurIPS 2024), section 3.
    """
    models = sorted({i for i, _ in maps})
    if len(models) < 3:
        return 0.0
    astray = total = 0
    for group in next(iter(maps.values())).spec.groups:
        perms, signs = _stacked(maps, models, group)
        units = torch.arange(perms.shape[2], device="cpu")
        for i, j in itertools.permutations(range(len(models)), 2):
            others = [k for k in range(len(models)) if k not in (i, j)]
            last = perms[others, i]
            middle = perms[j, others].gather(1, last)
            sign = signs[others, i] * signs[j, others].gather(1, last) * signs[i, j][middle]
            astray += int(((perms[i, j][middle] != units) | (sign < 0)).sum())
            total += last.numel()
    return astray / total if total else 0.0


def _stacked(
    maps: Mapping[tuple[int, int], Permutation], models: Sequence[int], group: str
) -> tuple[Tensor, Tensor]:
    """Return the vectors and signs of a group in all maps, int64 [models, models, units]."""
    one = next(iter(maps.values()))[group]
    perms = torch.arange(len(one), device="cpu").repeat(len(models), len(models), 1)
    signs = torch.ones_like(perms)
    for (i, source), (j, target) in itertools.permutations(enumerate(models), 2):
        found = maps[source, target]
        perms[i, j] = found[group]
        signs[i, j] = found.signs.get(group, signs[i, j])
    return perms, signs


def _collection(
    sources: object, spec: PermutationSpec | None
) -> tuple[list[str | None], list[Network]]:
    """Return the names and the networks of a collection.

    Raises:
        InputError: it is none, or is empty.
    """
    advice = "pass a list of modules, state dicts or paths"
    names: list[str | None] | None = None
    networks: list[Network]
    if isinstance(sources, Mapping) and any(isinstance(v, Tensor) for v in sources.values()):
        networks = _parts(sources, spec)
    elif isinstance(sources, Mapping):
        names, networks = [str(name) for name in sources], list(sources.values())
    elif isinstance(sources, nn.Module | str | bytes) or not isinstance(sources, Iterable):
        raise InputError(f"expected several networks, got {type(sources).__name__}; {advice}")
    else:
        networks = list(sources)
    if not networks:
        raise InputError(f"expected at least one network, got none; {advice}")
    return [name_of(network) for network in networks] if names is None else names, networks


def _parts(state: StateDict, spec: PermutationSpec | None) -> list[Network]:
    count = None
    if spec is not None:
        shapes = {name: spec.lookup(name).shape for name in state if name in spec.keys}
        count = stack_size(state, shapes)
    if count is None:
        raise InputError(
            "expected several networks, got one state dict; pass a list of them, or a stack of "
            "them (each tensor with a leading axis of models) together with its spec"
        )
    return list(unstacked(state, count))


def _spec_of(
    networks: Sequence[Network], states: Sequence[StateDict], inputs: object, outputs: Kept | None
) -> PermutationSpec:
    """Return the symmetries of the first module, or of what lies beside the checkpoints."""
    module = next((network for network in networks if isinstance(network, nn.Module)), None)
    if module is not None:
        return Model(module, inputs, outputs).find_spec()
    model = model_beside(networks, states[0], inputs, outputs)
    return chain_spec(states[0]) if model is None else model.find_spec()


def _check_number(argument: str, number: object, count: int) -> None:
    is_whole = isinstance(number, int) and not isinstance(number, bool)
    if number is not None and not (is_whole and 0 <= int(str(number)) < count):
        raise InputError(
            f"expected {argument}=None or the number of a model from 0 to {count - 1}, got "
            f"{argument}={number!r}"
        )


def _called(number: int, names: Sequence[str | None]) -> str:
    name = names[number]
    return f"model {number}" + ("" if name is None else f" ({name})")
