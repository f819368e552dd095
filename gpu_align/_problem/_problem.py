"""The alignment problem: one multilinear form that every search works on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_align._device import CPU, Engine
from gpu_align._problem._batches import Batches
from gpu_align._problem._coupling import Coupling
from gpu_align._problem._evidence import scaled_evidence
from gpu_align._problem._exact import ExactEvaluation
from gpu_align._problem._family import families_of, value_increase
from gpu_align._problem._form import AnyTerm, build_form, safe_exponent
from gpu_align._problem._hypotheses import Hypotheses
from gpu_align._problem._kernel_similarity import KernelSimilarity
from gpu_align._problem._metric import Metric, as_metric
from gpu_align._problem._renamed import Renamed
from gpu_align._problem._sibling_term import SiblingTerm
from gpu_align._problem._signed import is_signed, picked
from gpu_align._problem._soft import SoftEvaluation
from gpu_align._problem._stack import check_weights, compute_dtype, unusable
from gpu_align._problem._terms import Term
from gpu_align._symmetry import PermutationSpec, StateDict, TensorSpec, Weights

if TYPE_CHECKING:
    from gpu_align.kernels.row_distance import RowDistance


class AlignmentProblem(Coupling, SoftEvaluation, ExactEvaluation, Batches):
    """Minimise `D(pi) = sum_t w_t || A_t - pi.B_t ||_F^2` over the symmetries of a spec.

    `D(pi) = constant - 2 F(pi)`, where F is a sum of terms `<A, pi.B>`, linear in each permutation
    matrix (quadratic where a group lies on two axes of one tensor). A group has one matrix, a
    signed group a second one with its signs (`Member.variables`). A group and the groups inside it
    are a family, which is decided as one. Everything is batched over hypotheses, and over source
    models that share one target.

    Attributes:
        spec: the symmetries.
        metric: scales the tensors, `exponent` included.
        families: name of the root -> Family, in topological order.
        order: names of the roots, as a search takes them one after another.
        engine: what computes.
        unit: by what `constant`, objectives and similarities are multiplied to be in the units of
            the weights: a power of two, 1 but for weights that are tiny or huge.
        sizes: variable -> n.
        models: number of sources.
        sources: their weights.
        constant: float64 [m].
        unary: variable -> [m, n, n], similarity that depends on no other matrix.
        evidence: group or matrix -> [n, n] or [m, n, n], what was given.
        magnitude: float64 [m], the size of objectives, of which rounding noise is a share.
        terms: terms that couple two or more matrices.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023), section 3.2, equation 1; the sum of
    bilinear assignment problems.
    """

    groups = Renamed("order")
    touching = Renamed("terms_of")
    touched = Renamed("family_value")
    gain = Renamed("decrease")
    soft_objective = Renamed("soft_value")
    each_tensor_distance_before = Renamed("each_tensor_distance")

    def __init__(
        self,
        source: StateDict | Sequence[StateDict],
        target: StateDict,
        spec: PermutationSpec,
        *,
        metric: str | Metric = "l2",
        evidence: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        engine: Engine = CPU,
    ) -> None:
        """Build the form.

        Args:
            source: the network that is permuted, or several.
            target: the network that stays. The weights of both are not copied where they need no
                change: they must stay as they are while the problem is used.
            spec: the symmetries of both.
            metric: a name of `METRICS` or a Metric.
            evidence: group -> [n, n], extra similarity of target unit i and source unit j, see
                `activation_evidence`; or one for each source, [m, n, n]. Under the name of a
                group's signed matrix (a key of `sizes`) it counts with the sign of j; where signs
                stay as they are, it counts as it is.
            dtype: of the computation; default float64 if any counted tensor has it, else float32.
            engine: what computes; terms and hypotheses lie on its device.

        Raises:
            SpecError: names or shapes do not fit the spec.
            CheckpointError: weights are not finite floating-point numbers.
            InputError: unknown metric, evidence for no group or of the wrong shape.
        """
        sources = [source] if isinstance(source, Mapping) else list(source)
        for number, error in unusable(spec, sources).items():
            raise error if len(sources) == 1 else type(error)(f"source {number}: {error}")
        spec.validate(target, "target")
        check_weights(spec, target, "target")
        dtype = dtype or compute_dtype(spec, [*sources, target])
        models, fixed = (Weights(spec, s, engine.device) for s in (sources, [target]))
        self._build(models, fixed, spec, as_metric(metric), evidence or {}, dtype, engine)

    @classmethod
    def of_weights(
        cls,
        sources: Weights,
        target: Weights,
        *,
        metric: str | Metric,
        dtype: torch.dtype,
        engine: Engine,
        evidence: Mapping[str, Tensor] | None = None,
    ) -> "AlignmentProblem":
        """Build the form from weights that fit their spec and are known to be finite.

        Args:
            sources, target: on the engine's device; the target is of one model.
            metric, dtype, engine, evidence: as above.
        """
        problem = cls.__new__(cls)
        rest = (evidence or {}, dtype, engine)
        problem._build(sources, target, sources.spec, as_metric(metric), *rest)
        return problem

    def _build(
        self,
        sources: Weights,
        target: Weights,
        spec: PermutationSpec,
        metric: Metric,
        evidence: Mapping[str, Tensor],
        dtype: torch.dtype,
        engine: Engine,
    ) -> None:
        self.spec, self.metric, self.dtype, self.engine = spec, metric, dtype, engine
        self.sources, self._target, self.models = sources, target, len(sources)
        families = families_of(spec, signs=metric.odd)
        self.families = {family.root.group: family for family in families}
        self.order = list(self.families)
        self.sizes = {
            variable: family.units(member)
            for family in families
            for member in family.members
            for variable in member.variables
        }
        form = build_form(spec, families, target, sources, metric, dtype)
        if exponent := safe_exponent(form, target, metric):
            self.metric = metric = replace(metric, exponent=metric.exponent + exponent)
            form = build_form(spec, families, target, sources, metric, dtype)
        self.unit = metric.unit()
        self.constant, self._all_terms = form.constant, form.terms
        self.terms = tuple(term for term in form.terms if len(term.variables) > 1)
        self.unary = {variable: self._unary(variable) for variable in self.sizes}
        self.evidence = dict(evidence)
        self._add_evidence()
        by_kernels = engine.kernels and dtype == torch.float32
        self._kernels = KernelSimilarity(self.unary, self.terms) if by_kernels else None

    def _add_evidence(self) -> None:
        given = (self.evidence, self.sizes, self.models, self.metric.exponent)
        self.magnitude = self.constant.abs()
        strength: Tensor | float = 0.0
        for variable, extra in scaled_evidence(*given):
            self.unary[variable] = self.unary[variable] + extra.to(self.device, self.dtype)
            strength = strength + 2 * extra.abs().amax(-1).sum(-1).to(self.device)
            self.magnitude = torch.maximum(self.magnitude, strength)

    def _unary(self, variable: str) -> Tensor:
        total: Tensor | None = None
        for term in self._singles(variable):
            product = term.target @ term.source.transpose(1, 2)
            total = product.contiguous() if total is None else total.add_(product)
        if total is None:
            size = self.sizes[variable]
            return torch.zeros(self.models, size, size, dtype=self.dtype, device=self.device)
        return total

    def _singles(self, variable: str) -> list[AnyTerm]:
        return [term for term in self._all_terms if term.variables == (variable,)]

    def unary_norms(self, variable: str) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` over the weights that lie on this matrix only, [m, n, n]."""
        total = torch.zeros_like(self.unary[variable])
        for term in self._singles(variable):
            total += term.squared_norms(0)
        return total

    def in_float64(self) -> "AlignmentProblem":
        """Return the problem computed in float64, in which bounds are proved."""
        if self.dtype == torch.float64:
            return self
        problem = AlignmentProblem.__new__(type(self))
        rest = (self.spec, self.metric, self.evidence, torch.float64, self.engine)
        problem._build(self.sources, self._target, *rest)
        return problem

    def of_source(self, model: int, evidence: Mapping[str, Tensor]) -> "AlignmentProblem":
        """Return the problem of one of the sources, with more evidence."""
        problem = AlignmentProblem.__new__(type(self))
        joined = {**self.evidence}
        for group, extra in evidence.items():
            joined[group] = joined[group] + extra.to(joined[group]) if group in joined else extra
        rest = (self.spec, self.metric, joined, self.dtype, self.engine)
        problem._build(self.sources.part(model, model + 1), self._target, *rest)
        return problem

    def of_sources(self, models: Sequence[int]) -> "AlignmentProblem":
        """Return the problem of some of the sources, in this order."""
        problem, index = AlignmentProblem.__new__(type(self)), list(models)
        evidence = {n: e if e.ndim == 2 else e[index] for n, e in self.evidence.items()}
        rest = (self.spec, self.metric, evidence, self.dtype, self.engine)
        problem._build(self.sources.select(index), self._target, *rest)
        return problem

    def restricted(
        self, keep: Callable[[TensorSpec], bool], metric: str | Metric
    ) -> "AlignmentProblem":
        """Return the problem with another metric in which only tensors with `keep` count."""
        tensors = {
            name: replace(tensor, counted=tensor.counted and bool(tensor.axes) and keep(tensor))
            for name, tensor in self.spec.tensors.items()
        }
        spec, problem = replace(self.spec, tensors=tensors), AlignmentProblem.__new__(type(self))
        rest = (as_metric(metric), self.evidence, self.dtype, self.engine)
        problem._build(self.sources, self._target, spec, *rest)
        return problem

    def with_evidence(self, evidence: Mapping[str, Tensor]) -> "AlignmentProblem":
        """Return the problem with other evidence, given as to `__init__`."""
        problem = AlignmentProblem.__new__(type(self))
        parts = (self.sources, self._target, self.spec, self.metric)
        problem._build(*parts, evidence, self.dtype, self.engine)
        return problem

    # Hard permutations

    def objective(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return D of each hypothesis, less twice its evidence, float64 [b], from all terms."""
        return self.constant[model] - 2 * self._value(self.sizes, self.terms, perms, model)

    def similarity(self, variable: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `S = dF/dP` of a matrix with the others fixed.

        Args:
            variable: which of `sizes`.
            perms: variable -> int64 [b, n].
            model: int64 [b].

        Returns:
            [b, n, n] in the problem's dtype; `S[w, i, j]` is what is gained by putting unit j of
            the source at place i. For a group that is not quadratic, moving it from p to q
            changes D by `-2 sum_i (S[i, q_i] - S[i, p_i])`.
        """
        if self._kernels is None:
            total = self.unary[variable].index_select(0, model)
        else:
            total = self._kernels.similarity(variable, perms, model)
        for term, mode in self.modes_of(variable):
            if self._kernels is None or isinstance(term, SiblingTerm):
                total += term.similarity(mode, perms, model)
        return total

    def updated_similarity(
        self,
        variable: str,
        similarity: Tensor,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        model: Tensor,
    ) -> Tensor:
        """Return `similarity(variable, after, model)`, made from that at `before` where it pays.

        Only the places at which other matrices have changed are multiplied anew.

        Args:
            variable: which of `sizes`.
            similarity: [b, n, n] at `before`; not changed.
            before, after: variable -> int64 [b, n].
            model: int64 [b].
        """
        modes = self.modes_of(variable)
        siblings = any(isinstance(term, SiblingTerm) for term, _ in modes)
        if siblings or self._kernels is not None or not self.engine.waits:
            return self.similarity(variable, after, model)
        total = similarity
        for term, mode in modes:
            assert isinstance(term, Term)
            change = term.change(mode, before, after, model)
            if change is None:
                return self.similarity(variable, after, model)
            total = total + change
        return total

    @cached_property
    def prepares_any(self) -> bool:
        """Whether `prepares` holds for any group."""
        return any(map(self.prepares, self.order))

    def prepares(self, group: str) -> bool:
        """Say whether the moves of a group can be prepared.

        By kernels, for a group without children of which no term sees two axes.
        """
        family = self.families[group]
        if self._kernels is None or family.children or self.is_quadratic(group):
            return False
        return all(map(self._kernels.prepares, family.variables))

    def prepared_similarity(
        self,
        variable: str,
        perms: Mapping[str, Tensor],
        model: Tensor,
        active: Tensor,
        out: Tensor,
    ) -> "RowDistance":
        """Prepare the similarity of a matrix for many launches; see `similarity`.

        Args:
            variable: of a group that `prepares` names.
            perms: variable -> int64 [b, n], which may be overwritten between launches.
            model: int64 [b].
            active: int64 [b], likewise; 0 where a hypothesis is left out.
            out: float32 [b, n, n], contiguous.
        """
        assert self._kernels is not None
        return self._kernels.prepared(variable, perms, model, active, out)

    def similarities(
        self, group: str, perms: Mapping[str, Tensor], model: Tensor
    ) -> dict[str, Tensor]:
        """Return the similarity of every matrix of a family, variable -> [b, n, n]."""
        return {
            variable: self.similarity(variable, perms, model)
            for variable in self.families[group].variables
        }

    def decrease(
        self,
        group: str,
        similarity: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        hypotheses: Hypotheses,
    ) -> Tensor:
        """Return by how much D falls when a family moves, float64 [b].

        Only the terms that the family touches enter: they are all in `similarity`, unless it is
        quadratic, where these terms are evaluated anew.

        Args:
            group: root of the family.
            similarity: variable -> [b, n, n] at `hypotheses`.
            after: variable -> int64 [b, n], where it moves.
            hypotheses: the batch before the move.
        """
        before = hypotheses.perms
        if not self.is_quadratic(group):
            return 2 * value_increase(similarity, before, after)
        model = hypotheses.model
        moved = self.family_value(group, {**before, **after}, model)
        return 2 * (moved - self.family_value(group, before, model))

    def family_value(self, group: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the part of F that depends on a family, float64 [b]."""
        return self._value(self.families[group].variables, self.family_terms(group), perms, model)

    def _value(
        self,
        variables: Iterable[str],
        terms: Iterable[AnyTerm],
        perms: Mapping[str, Tensor],
        model: Tensor,
    ) -> Tensor:
        total = self.constant.new_zeros(len(model))
        for variable in variables:
            signed = is_signed(variable)
            total += picked(self.unary[variable], perms[variable], model, signed=signed)
        for term in terms:
            total += term.inner(perms, model)
        return total
