"""Evidence from data: how alike the units of two networks behave on the same examples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._align._networks import Model, Network, state_of
from gpu_align._align._same_units import converted
from gpu_align._checkpoint import rename
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._network import BATCH_SIZE, Data, Examples, Traces, fitted, unit_statistics
from gpu_align._problem import (
    AlignmentProblem,
    Hypotheses,
    check_weights,
    families_of,
    picked,
    signed_matrix,
    unsigned,
)
from gpu_align._process import full_precision
from gpu_align._search import CoordinateDescent, Progress, ProgressCallback, run_search
from gpu_align._status import Status
from gpu_align._symmetry import PermutationSpec, StateDict, spec_of_file

KINDS = ("weights", "activations", "both")
ALPHA = 0.3
"""How much correlations count beside weights by default; 1 is as much."""
ALPHAS = (ALPHA, 1.0)
"""What is tried beside the weights alone where alpha is to be chosen."""
MOST = 2000
"""Examples that correlations are taken over."""

NO_MODEL = (
    "activations need a model that is run; pass a module, or a folder of Hugging Face, or "
    "evidence='weights'"
)

_ALONE = 1000.0
"""The alpha of activations alone: weights tell apart units that are equal in what they do."""
_LEAST_SHARE = 0.1
"""Of the best correlations of all units: weights that match less of them give no scale."""

Correlations = dict[str, Tensor]
"""Matrix of an AlignmentProblem -> float64 [n, n]."""


@dataclass(frozen=True)
class Evidence:
    """What is looked at beside the weights, or in their place.

    Attributes:
        kind: one of `KINDS`.
        alpha: how much correlations count beside weights.
        examples: what both networks are run on.
        progress: called with the number of examples that are done, and of all.
        known: correlations of each source, where they were measured before; else None.
        judge: data on whose held-back part alpha is chosen; None for the alpha that is given.
    """

    kind: str
    alpha: float
    examples: Examples
    progress: Callable[[int, int], None] | None = None
    known: "Sequence[Correlations] | None" = None
    judge: Data | None = None

    @classmethod
    def of(
        cls, kind: str | None, data: object, alpha: float | str | None, seed: int
    ) -> "Evidence | None":
        """Make it of what a user passes to `align`; None without data.

        Raises:
            InputError: one of them cannot be used, or does not go with the others.
        """
        kind = kind or ("weights" if data is None else "both")
        if kind not in KINDS:
            raise InputError(f"expected evidence among {', '.join(KINDS)}, got {kind!r}")
        if alpha is not None and data is None:
            raise InputError(
                "alpha says how much activations on data count, and no data were given; pass data, "
                "see Data.of, or leave alpha"
            )
        if alpha is not None and kind != "both":
            raise InputError(
                f"alpha says how much activations count beside weights, evidence={kind!r} takes "
                "one of the two alone; leave alpha, or take evidence='both'"
            )
        if data is None and kind == "weights":
            return None
        strength = ALPHA if alpha in (None, "auto") else _checked_alpha(alpha)
        if data is None:
            raise InputError(
                f"evidence={kind!r} needs data to run both networks on; pass data, see Data.of"
            )
        parts = Data.of(data, seed=seed)
        if alpha == "auto" and not parts.held.have_targets:
            raise InputError(
                'alpha="auto" compares losses on data that are held back, and the data have no '
                "targets; give pairs (x, y), or alpha as a number"
            )
        judge = parts if alpha == "auto" else None
        return cls(kind, strength, parts.fit.take(MOST), judge=judge)

    @property
    def beside_weights(self) -> "Evidence | None":
        """It, unless the weights alone count."""
        return None if self.kind == "weights" else self

    @property
    def first_inputs(self) -> object:
        """Inputs of two examples, to trace a model with."""
        return self.examples.lots[0][:2].inputs


def _checked_alpha(alpha: object) -> float:
    if isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 <= alpha < math.inf:
        return float(alpha)
    raise InputError(f'expected alpha as a number of at least 0, or "auto", got {alpha!r}')


class Correlator:
    """Measures how the units of networks correlate with those of a target.

    Args:
        model: of all networks; None if there is none.
        spec: whose groups are looked at.
        target: the state dict of the target, under the names of the spec.
        examples: see `Evidence`.
        device: where the networks are run.
        progress: see `Evidence`.
        traces: of the model on that device, if there are any.
        batch_size: how many examples are run at once.

    Raises:
        InputError: there is no model, or the examples do not fit it.
    """

    def __init__(
        self,
        model: Model | None,
        spec: PermutationSpec,
        target: StateDict,
        examples: Examples,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
        *,
        traces: Traces | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if model is None:
            raise InputError(NO_MODEL)
        if model.example_shape is not None:
            examples = fitted(examples, model.example_shape)
        self._model, self._spec, self._target = model, spec, target
        self._examples, self._progress = examples, progress
        self._traces = traces or Traces(model.network, model.outputs, device)
        self._batch_size = batch_size

    def of(self, source: Network) -> Correlations:
        """Return the correlations of the units of the target and of a source, [target, source].

        Those of a group are added up over all places in which it is seen; a signed matrix has
        those that change with the sign of a unit.

        Args:
            source: a state dict under the names of the spec.

        Raises:
            InputError: the source does not fit, or what it computes is not finite.
        """
        state = state_of(source)
        self._spec.validate(state, "source")
        check_weights(self._spec, state, "source")
        a, b = map(self._model.in_module, (self._target, state))
        with full_precision():
            found = unit_statistics(
                *(self._traces, self._examples, a, b),
                batch_size=self._batch_size,
                progress=self._progress,
            )
        first = next(self._traces.batches(self._examples, self._batch_size))
        own = spec_of_file(self._traces.of(first)[0].spec, self._model.names, {})
        sums: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for site, moments in found.items():
            total = sums[site.signed]
            correlation = moments.correlation
            if not bool(correlation.isfinite().all()):
                raise InputError(
                    "what the networks compute on the data is not finite; look at the data and at "
                    "both networks"
                )
            known = total.get(site.group)
            total[site.group] = correlation if known is None else known + correlation
        correlations: Correlations = {}
        for signed, total in enumerate(sums):
            for group, matrix in converted(total, own, self._spec).items():
                for name in _matrix_of(self._spec, group, signed=bool(signed)):
                    known = correlations.get(name)
                    correlations[name] = matrix if known is None else known + matrix
        return correlations


def _matrix_of(spec: PermutationSpec, group: str, *, signed: bool) -> list[str]:
    """Return the matrix that a group's correlations count for; none if its units cannot move."""
    free = {m.group for family in families_of(spec, signs=True) for m in family.members}
    known = spec.groups[group]
    if group not in free and known.size == 1 and known.parent is not None:
        group = known.parent  # each unit of it is one of the parent
    if group not in free:
        return []
    return [signed_matrix(group) if signed and spec.groups[group].signed else group]


def activation_evidence(
    a: Network,
    b: Network,
    spec: PermutationSpec,
    data: object,
    *,
    model: nn.Module | ExportedProgram | Model | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return how the units of two networks correlate on data, for `AlignmentProblem(evidence=...)`.

    The correlations of a group are added up over the values in which later layers read it, so that
    an entry lies within plus and minus their number. Evidence counts in the units of squared
    weights: multiply it by what it is to weigh, or let `align(evidence="both")` do so.

    Args:
        a: the network that stays, the target of the problem: a module, a state dict or a path.
        b: the network whose units are reordered, its source.
        spec: the symmetries of both.
        data: see `Data.of`; of the part that is not held back the first 2000 examples are run.
        model: what is run with the tensors of both. Default: the first of them that is a module.
        device: see `align`.
        seed: of the draw of what is held back.
        progress: called with the number of examples that are done, and of all.

    Returns:
        Group, or the name of its signed matrix for what changes with the sign of a unit -> float64
        [n, n], unit of a and unit of b. Groups that are seen nowhere on their own are left out.

    Raises:
        InputError: the data, a network or the model cannot be used.

    Source: Li et al., Convergent learning (2015), section 3; Ainsworth et al., Git Re-Basin (ICLR
    2023), section 3.1.
    """
    checked = Evidence.of("both", data, None, seed)
    assert checked is not None
    if not isinstance(model, Model):
        module = model or next((net for net in (a, b) if isinstance(net, nn.Module)), None)
        model = None if module is None else Model(module, checked.first_inputs)
    target, source = (rename(state_of(net), spec.keys).state for net in (a, b))
    place = choose_engine(device).device
    return Correlator(model, spec, target, checked.examples, place, progress).of(source)


def guided(
    problem: AlignmentProblem,
    evidence: Evidence,
    correlations: Sequence[Correlations],
    *,
    seed: int,
    progress: ProgressCallback | None,
) -> AlignmentProblem:
    """Return a problem in which correlations count beside the weights, or in their place.

    With alpha = 1 the correlations of a group are worth in all what its weights are worth, in the
    order that the weights alone ask for.

    Args:
        problem: of the weights.
        evidence: what counts, and how much.
        correlations: of each source of the problem.
        seed: of the search for the order that the weights ask for.
        progress: called after its steps.

    Raises:
        KeyboardInterrupt: Ctrl-C ended that search.
    """
    alpha = _ALONE if evidence.kind == "activations" else evidence.alpha
    given = stacked(problem, correlations)
    return problem.with_evidence(_scaled(problem, given, alpha, seed, progress))


def stacked(problem: AlignmentProblem, correlations: Sequence[Correlations]) -> Correlations:
    """Return the correlations of all sources under the names of the problem's matrices."""
    found: Correlations = {}
    for name in correlations[0]:
        variable = name if name in problem.sizes else unsigned(name)
        stack = torch.stack([each[name] for each in correlations]).to(problem.device)
        found[variable] = found[variable] + stack if variable in found else stack
    return found


def _scaled(
    problem: AlignmentProblem,
    given: Correlations,
    alpha: float,
    seed: int,
    progress: ProgressCallback | None,
) -> Correlations:
    """Return evidence in the units of the weights; see `guided`."""

    def named(entry: Progress) -> None:
        if progress is not None:
            progress(replace(entry, stage="scale of the evidence"))

    outcome = run_search(CoordinateDescent(), problem, seed=seed, progress=named)
    if outcome.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    factors = scales(problem, given, alpha, outcome.best)
    names = [name for name in problem.sizes if name in given]
    return {name: factors[unsigned(name)][:, None, None] * given[name] for name in names}


def scales(
    problem: AlignmentProblem, given: Correlations, alpha: float, order: Hypotheses
) -> dict[str, Tensor]:
    """Return what correlations are multiplied by to count in the units of the weights.

    Args:
        problem: of the weights.
        given: its matrix -> correlations of its sources, [models, n, n].
        alpha: how much correlations count beside the weights.
        order: one hypothesis of each source, in which their weights match.

    Returns:
        Group -> float64 [models].
    """
    found: dict[str, Tensor] = {}
    for family in problem.families.values():
        for member in family.members:
            weights, total, top = (torch.zeros_like(problem.constant) for _ in range(3))
            for variable in member.variables:
                similarity = problem.similarity(variable, order.perms, order.model)
                weights += picked(similarity, order.perms[variable])
            for variable in member.variables:
                if variable in given:
                    total += picked(given[variable], order.perms[variable])
                    top += given[variable].abs().amax(-1).sum(-1)
            total = torch.maximum(total, _LEAST_SHARE * top)
            factor = alpha * problem.unit * weights.abs() / total
            found[member.group] = torch.where(total > 0, factor, 0.0)
    return found
