"""The alignment problem: one multilinear form that every search works on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_align._device import CPU, Engine, RandomStream
from gpu_align._errors import InputError
from gpu_align._problem._digest import hash_tensors
from gpu_align._problem._family import families_of, gain_of
from gpu_align._problem._form import AnyTerm, build_form
from gpu_align._problem._hypotheses import Hypotheses, in_chunks
from gpu_align._problem._kernel_products import kernel_products
from gpu_align._problem._metric import Metric, as_metric
from gpu_align._problem._sibling_term import SiblingTerm
from gpu_align._problem._signed import is_signed, picked, sign_of, unsigned, with_sign
from gpu_align._problem._stack import check_weights, compute_dtype, squared_norms, unusable
from gpu_align._problem._terms import Term
from gpu_align._symmetry import (
    Permutation,
    PermutationSpec,
    StateDict,
    TensorSpec,
    Weights,
    move_each,
    multiply_each,
    part_elements,
)

if TYPE_CHECKING:
    from gpu_align.kernels.row_distance import RowDistance


class AlignmentProblem:
    """Minimise `D(pi) = sum_t w_t || A_t - pi.B_t ||_F^2` over the symmetries of a spec.

    `D(pi) = constant - 2 F(pi)`, where F is a sum of terms `<A, pi.B>`, linear in each permutation
    matrix (quadratic where a group lies on two axes of one tensor). A group has one matrix, a
    signed group a second one with its signs (`Member.variables`). A group and the groups inside it
    are a family, which is decided as one. Everything is batched over hypotheses, and over source
    models that share one target.

    Attributes:
        spec: the symmetries.
        metric: scales the tensors.
        families: name of the root -> Family, in topological order.
        order: names of the roots, as a search takes them one after another.
        engine: what computes.
        sizes: variable -> n.
        models: number of sources.
        sources: their weights.
        constant: float64 [m].
        unary: variable -> [m, n, n], similarity that depends on no other matrix.
        evidence: group -> [n, n], what was given.
        terms: terms that couple two or more matrices.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023), section 3.2, equation 1; the sum of
    bilinear assignment problems.
    """

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
            evidence: group -> [n, n], extra similarity of target unit i and source unit j, for
                instance a correlation of activations.
            dtype: of the computation; default float64 if any counted tensor has it, else float32.
            engine: what computes; terms and hypotheses lie on its device.

        Raises:
            SpecError: names or shapes do not fit the spec.
            CheckpointError: weights are not finite floating-point numbers.
            InputError: unknown metric, evidence of the wrong shape.
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
    ) -> "AlignmentProblem":
        """Build the form from weights that fit their spec and are known to be finite.

        Args:
            sources, target: on the engine's device; the target is of one model.
            metric, dtype, engine: as above.
        """
        problem = cls.__new__(cls)
        problem._build(sources, target, sources.spec, as_metric(metric), {}, dtype, engine)
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
        self._neighbours: dict[str, tuple[str, ...]] = {}
        self._root_of = {m: root for root, f in self.families.items() for m in f.variables}
        form = build_form(spec, families, target, sources, metric, dtype)
        self.constant, self._all_terms = form.constant, form.terms
        self.terms = tuple(term for term in form.terms if len(term.variables) > 1)
        self.unary = {variable: self._unary(variable) for variable in self.sizes}
        self.evidence = dict(evidence)
        for name, extra in self.evidence.items():
            size = self.sizes.get(name)
            if size is None or extra.shape != (size, size):
                raise InputError(
                    f"evidence for {name!r} has shape {list(extra.shape)}, expected [n, n] for one "
                    f"of the groups {self.sizes}"
                )
            self.unary[name] = self.unary[name] + extra.to(engine.device, dtype)
        self._kernels = kernel_products(self) if engine.kernels else None

    @property
    def groups(self) -> list[str]:
        """Deprecated name of `order`."""
        message = "AlignmentProblem.groups is deprecated: it is called order now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.order

    @property
    def device(self) -> torch.device:
        """Where terms and hypotheses lie."""
        return self.engine.device

    def _unary(self, variable: str) -> Tensor:
        size = self.sizes[variable]
        total = torch.zeros(self.models, size, size, dtype=self.dtype, device=self.device)
        for term in self._singles(variable):
            total += term.target @ term.source.transpose(1, 2)
        return total

    def _singles(self, variable: str) -> list[AnyTerm]:
        return [term for term in self._all_terms if term.variables == (variable,)]

    def unary_norms(self, variable: str) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` over the weights that lie on this matrix only, [m, n, n]."""
        total = torch.zeros_like(self.unary[variable])
        for term in self._singles(variable):
            total += term.squared_norms(0)
        return total

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

    def touching(self, variable: str) -> tuple[AnyTerm, ...]:
        """Return the coupling terms in which a matrix takes part."""
        return tuple(term for term in self.terms if variable in term.variables)

    def roots(self, term: AnyTerm) -> tuple[str, ...]:
        """Return the group that each matrix of a term is decided with."""
        return tuple(self._root_of[variable] for variable in term.variables)

    def family_terms(self, group: str) -> tuple[AnyTerm, ...]:
        """Return the coupling terms in which any matrix of a family takes part."""
        variables = self.families[group].variables
        return tuple(term for term in self.terms if not set(variables).isdisjoint(term.variables))

    def sibling_terms(self, group: str) -> tuple[SiblingTerm, ...]:
        """Return the terms that couple children of a family with each other."""
        variables = self.families[group].variables
        siblings = (term for term in self.terms if isinstance(term, SiblingTerm))
        return tuple(term for term in siblings if term.variables[0] in variables)

    def neighbours(self, group: str) -> tuple[str, ...]:
        """Return the groups whose similarity changes when `group` moves; itself if quadratic."""
        if group not in self._neighbours:
            own = self.families[group].variables
            found: dict[str, None] = {}
            for term in self.family_terms(group):
                others = list(term.variables)
                others.remove(next(variable for variable in others if variable in own))
                found.update((self._root_of[variable], None) for variable in others)
            self._neighbours[group] = tuple(found)
        return self._neighbours[group]

    @cached_property
    def coupling(self) -> Tensor:
        """Which groups share a term, bool [groups, groups] on the host."""
        coupled = torch.zeros(len(self.order), len(self.order), dtype=torch.bool)
        for number, group in enumerate(self.order):
            for neighbour in self.neighbours(group):
                coupled[number, self.order.index(neighbour)] = True
        return coupled

    def seen_from(self, group: str) -> frozenset[str]:
        """Return the matrices of a family and those that its similarities depend on."""
        terms = self.family_terms(group)
        return frozenset(self.families[group].variables).union(*(term.variables for term in terms))

    def is_quadratic(self, group: str) -> bool:
        """Say whether a term couples two matrices of a family, or one with itself."""
        return group in self.neighbours(group)

    # Hard permutations

    def hypotheses(self, perms: Mapping[str, Tensor], model: Tensor | None = None) -> Hypotheses:
        """Make a batch and compute its objective in full.

        Args:
            perms: variable -> int64 [b, n]; a signed matrix that is left out keeps all signs.
            model: int64 [b], default all 0.
        """
        perms = self.completed(perms)
        if model is None:
            batch = next((len(perm) for perm in perms.values()), 1)
            model = torch.zeros(batch, dtype=torch.int64, device=self.device)
        objective = self.objective(perms, model)
        return Hypotheses(perms, model, objective, torch.zeros_like(model), self.models)

    def completed(self, perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors of exactly the matrices of this problem; missing signs are 1."""
        return {variable: perms.get(variable, perms[unsigned(variable)]) for variable in self.sizes}

    def model_index(self, width: int) -> Tensor:
        """Return the model of each of `width` hypotheses per model, int64 [m * width]."""
        return torch.arange(self.models, device=self.device).repeat_interleave(width)

    def identity(self, width: int = 1) -> Hypotheses:
        """Return `width` hypotheses per model that move nothing."""
        return self._identity if width == 1 else self._identity.spread(width)

    @cached_property
    def _identity(self) -> Hypotheses:
        perms = {
            variable: torch.arange(size, device=self.device).expand(self.models, size)
            for variable, size in self.sizes.items()
        }
        return self.hypotheses(perms, self.model_index(1))

    def random(self, width: int, random: RandomStream) -> Hypotheses:
        """Return `width` hypotheses per model drawn uniformly, the same ones for each model."""
        model = self.model_index(width)
        owners = torch.arange(width, device=self.device).repeat(self.models)
        perms: dict[str, Tensor] = {}
        for family in self.families.values():
            perms |= family.random(owners, random)
        return self.hypotheses(perms, model)

    def objective(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return D of each hypothesis, less twice its evidence, float64 [b], from all terms."""
        inner = self.constant.new_zeros(len(model))
        for variable in self.sizes:
            inner += picked(self.unary[variable], perms[variable], model)
        for term in self.terms:
            inner += term.inner(perms, model)
        return self.constant[model] - 2 * inner

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
            total, terms = self.unary[variable][model], self.touching(variable)
        else:
            total = self._kernels.similarity(variable, perms, model)
            terms = tuple(t for t in self.touching(variable) if isinstance(t, SiblingTerm))
        for term in terms:
            for place, name in enumerate(term.variables):
                if name == variable:
                    total += term.similarity(place, perms, model)
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
        terms = self.touching(variable)
        siblings = any(isinstance(term, SiblingTerm) for term in terms)
        if siblings or self._kernels is not None or not self.engine.waits:
            return self.similarity(variable, after, model)
        total = similarity
        for term in terms:
            assert isinstance(term, Term)
            for place in (n for n, name in enumerate(term.variables) if name == variable):
                change = term.change(place, before, after, model)
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
        variables: Sequence[str],
        perms: Mapping[str, Tensor],
        model: Tensor,
        active: Tensor,
        out: Sequence[Tensor],
    ) -> "RowDistance":
        """Prepare the similarities of some matrices for many launches; see `similarity`.

        Args:
            variables: of a group that `prepares` names.
            perms: variable -> int64 [b, n], which may be overwritten between launches.
            model: int64 [b].
            active: int64 [b], likewise; 0 where a hypothesis is left out.
            out: float32 [b, n, n] of each matrix, contiguous.
        """
        assert self._kernels is not None
        return self._kernels.prepared(variables, perms, model, active, out)

    def similarities(
        self, group: str, perms: Mapping[str, Tensor], model: Tensor
    ) -> dict[str, Tensor]:
        """Return the similarity of every matrix of a family, variable -> [b, n, n]."""
        return {
            variable: self.similarity(variable, perms, model)
            for variable in self.families[group].variables
        }

    def gain(
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
            return 2 * gain_of(similarity, before, after)
        model = hypotheses.model
        moved = self.touched(group, {**before, **after}, model)
        return 2 * (moved - self.touched(group, before, model))

    def touched(self, group: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the part of F that depends on a family, float64 [b]."""
        inner = self.constant.new_zeros(len(model))
        for variable in self.families[group].variables:
            inner += picked(self.unary[variable], perms[variable], model)
        for term in self.family_terms(group):
            inner += term.inner(perms, model)
        return inner

    # Soft permutations

    def soft_objective(self, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return F of doubly stochastic matrices, float64 [b].

        Args:
            soft: variable -> [b, n, n].
            model: int64 [b].
        """
        total = self.constant.new_zeros(len(model))
        for variable, unary in self.unary.items():
            product = unary[model] * soft[variable]
            total += product.sum((1, 2), dtype=torch.float64)
        for term in self.terms:
            gradient = term.soft_similarity(0, soft, model)
            total += (gradient * soft[term.variables[0]]).sum((1, 2), dtype=torch.float64)
        return total

    def soft_similarity(
        self,
        soft: Mapping[str, Tensor],
        model: Tensor,
        out: Mapping[str, Tensor] | None = None,
        beat: Callable[[str], None] | None = None,
    ) -> dict[str, Tensor]:
        """Return the gradient of F at doubly stochastic matrices, variable -> [b, n, n].

        Args:
            soft: variable -> [b, n, n].
            model: int64 [b].
            out: variable -> [b, n, n] to write to; default new memory.
            beat: told before each product how many are done.
        """
        gradient = {
            variable: torch.index_select(
                unary, 0, model, out=None if out is None else out[variable]
            )
            for variable, unary in self.unary.items()
        }
        places = [(t, place, m) for t in self.terms for place, m in enumerate(t.variables)]
        for number, (term, place, variable) in enumerate(places):
            if beat is not None:
                beat(f"product {number + 1} of {len(places)}")
            gradient[variable] += term.soft_similarity(place, soft, model)
        return gradient

    # Exact evaluation

    def distance(self, permutation: Permutation, model: int = 0) -> float:
        """Return D of one permutation in float64, from the checkpoints themselves."""
        return sum(self.tensor_distances(permutation, model).values())

    def tensor_distances(self, permutation: Permutation, model: int = 0) -> dict[str, float]:
        """Return what each counted tensor contributes to `distance`."""
        perms, signs = (
            {name: vector[None].to(self.device) for name, vector in found.items()}
            for found in (permutation.perms, permutation.signs)
        )
        index = torch.full((1,), model, device=self.device)
        found = self._tensor_distances(perms, signs, index)
        values = torch.cat([*found.values(), self.constant.new_empty(0)]).cpu().tolist()
        return dict(zip(found, values, strict=True))

    def each_tensor_distance(self, hypotheses: Hypotheses) -> dict[str, Tensor]:
        """Return `tensor_distances` of every hypothesis at once, tensor -> float64 [b]."""
        return self._tensor_distances(*self.group_vectors(hypotheses), hypotheses.model)

    def each_tensor_distance_before(self) -> dict[str, Tensor]:
        """Return what each counted tensor of every source is away as given, float64 [m]."""
        return self._tensor_distances({}, {}, torch.arange(self.models, device=self.device))

    def _tensor_distances(
        self, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor], model: Tensor
    ) -> dict[str, Tensor]:
        """Return the distances of sources by number, int64 [b]; without `perms` as they lie."""
        names = (name for name, tensor in self.spec.tensors.items() if tensor.counted)
        return {name: self._distances_of(name, perms, signs, model) for name in names}

    def _distances_of(
        self,
        name: str,
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
        model: Tensor,
    ) -> Tensor:
        """Return what one tensor contributes, float64 [b]."""
        stack, a = self.sources[name], self.metric.scaled_each(self._target[name])
        layout, groups = self.spec.tensors[name], self.spec.groups

        def of(part: slice) -> Tensor:
            b = stack.index_select(0, model[part])
            if perms:
                b = move_each(b, layout, groups, {g: perms[g][part] for g in layout.groups})
            b = multiply_each(b, layout, groups, {g: sign[part] for g, sign in signs.items()})
            return squared_norms(self.metric.scaled_each(b).sub_(a))

        return in_chunks(of, len(model), part_elements(self.device) // max(a.numel(), 1))

    def digests(self) -> dict[str, str]:
        """Return hashes of the weights that the spec names: of all sources, and of the target."""

        def named(state: StateDict) -> dict[str, Tensor]:
            return {name: self.spec.tensor_of(name, state) for name in self.spec.tensors}

        return {
            "the weights of the source": hash_tensors(map(named, self.sources.states)),
            "the weights of the target": hash_tensors(map(named, self._target.states)),
        }

    def permutation(self, hypotheses: Hypotheses, index: int = 0) -> Permutation:
        """Return one hypothesis as a Permutation of all groups of the spec."""
        chosen = torch.full((1,), index, device=hypotheses.model.device)
        return self.permutations(hypotheses.select(chosen))[0]

    def permutations(self, hypotheses: Hypotheses) -> list[Permutation]:
        """Return every hypothesis as a Permutation of all groups of the spec."""
        vectors = self.group_vectors(hypotheses)
        perms, signs = ({name: v.cpu() for name, v in found.items()} for found in vectors)
        return Permutation.each(self.spec, perms, signs, len(hypotheses))

    def group_vectors(self, hypotheses: Hypotheses) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return vectors and signs of every group of the spec, group -> int64 [b, units]."""
        found, device = hypotheses.perms, hypotheses.model.device
        signs = {unsigned(m): sign_of(perm) for m, perm in found.items() if is_signed(m)}
        perms = {}
        for name in self.spec.groups:
            still = torch.arange(self.spec.units(name), device=device)
            perms[name] = found.get(name, still.expand(len(hypotheses), -1))
        for name, group in self.spec.groups.items():
            if group.parent is not None and group.size == 1:
                perms[name] = perms[group.parent]
        return perms, signs

    def vectors(self, permutation: Permutation) -> dict[str, Tensor]:
        """Return a Permutation as a batch of one, variable -> int64 [1, n]."""
        found = {}
        for variable in self.sizes:
            perm = permutation.perms[unsigned(variable)]
            if (
                is_signed(variable)
                and (sign := permutation.signs.get(unsigned(variable))) is not None
            ):
                perm = with_sign(perm, sign < 0)
            found[variable] = perm[None].to(self.device)
        return found
