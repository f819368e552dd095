"""The alignment problem: one multilinear form that every search works on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._permutation import Permutation
from gpu_align._problem._hypotheses import Hypotheses
from gpu_align._problem._metric import Metric, as_metric
from gpu_align._problem._terms import Term, build_form, check_weights
from gpu_align._symmetry._spec import PermutationSpec, StateDict, TensorSpec


class AlignmentProblem:
    """Minimise `D(pi) = sum_t w_t || A_t - pi.B_t ||_F^2` over the symmetries of a spec.

    `D(pi) = constant - 2 F(pi)`, where F is a sum of terms `<A, pi.B>`, linear in the permutation
    of each group (quadratic where a group lies on two axes of one tensor). Everything is batched
    over hypotheses, and over source models that share one target.

    Attributes:
        spec: the symmetries.
        metric: scales the tensors.
        groups: names of the groups in topological order; those of one unit are left out.
        sizes: group -> number of units.
        models: number of sources.
        constant: float64 [m].
        unary: group -> [m, n, n], similarity that depends on no other group.
        evidence: group -> [n, n], what was given.
        terms: terms that couple two or more groups.

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
    ) -> None:
        """Build the form.

        Args:
            source: the network that is permuted, or several.
            target: the network that stays.
            spec: the symmetries of both.
            metric: a name of `METRICS` or a Metric.
            evidence: group -> [n, n], extra similarity of target unit i and source unit j, for
                instance a correlation of activations.
            dtype: of the computation; default float64 if any counted tensor has it, else float32.

        Raises:
            SpecError: names or shapes do not fit the spec.
            CheckpointError: weights are not finite floating-point numbers.
            InputError: unknown metric, evidence of the wrong shape.
        """
        sources = [source] if isinstance(source, Mapping) else list(source)
        self.spec, self.metric = spec, as_metric(metric)
        self.sizes = {name: group.size for name, group in spec.groups.items() if group.size > 1}
        self.groups = list(self.sizes)
        self.models = len(sources)
        for state, role in [*((s, "source") for s in sources), (target, "target")]:
            spec.validate(state, role)
            check_weights(spec, state, role)
        self._sources, self._target = sources, target
        self.dtype = dtype or _compute_dtype(spec, [*sources, target])
        form = build_form(spec, target, sources, self.metric, self.dtype)
        self.constant = form.constant
        self._all_terms = form.terms
        self.terms = tuple(term for term in form.terms if len(term.groups) > 1)
        self.unary = {name: self._unary(name) for name in self.groups}
        self.evidence = dict(evidence or {})
        for name, extra in self.evidence.items():
            size = self.sizes.get(name)
            if size is None or extra.shape != (size, size):
                raise InputError(
                    f"evidence for {name!r} has shape {list(extra.shape)}, expected [n, n] for one "
                    f"of the groups {self.sizes}"
                )
            self.unary[name] = self.unary[name] + extra.to(self.dtype)

    def _unary(self, group: str) -> Tensor:
        size = self.sizes[group]
        total = torch.zeros(self.models, size, size, dtype=self.dtype)
        for term in self._singles(group):
            total += term.target @ term.source.transpose(1, 2)
        return total

    def _singles(self, group: str) -> list[Term]:
        return [term for term in self._all_terms if term.groups == (group,)]

    def unary_norms(self, group: str) -> Tensor:
        """Return `|a_i|^2 + |b_j|^2` over the weights that lie on this group only, [m, n, n]."""
        total = torch.zeros_like(self.unary[group])
        for term in self._singles(group):
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
        spec = replace(self.spec, tensors=tensors)
        return AlignmentProblem(
            self._sources,
            self._target,
            spec,
            metric=metric,
            evidence=self.evidence,
            dtype=self.dtype,
        )

    def touching(self, group: str) -> tuple[Term, ...]:
        """Return the coupling terms in which a group takes part."""
        return tuple(term for term in self.terms if group in term.groups)

    def neighbours(self, group: str) -> tuple[str, ...]:
        """Return the groups whose similarity changes when `group` moves; itself if quadratic."""
        found: dict[str, None] = {}
        for term in self.touching(group):
            others = list(term.groups)
            others.remove(group)
            found.update(dict.fromkeys(others))
        return tuple(found)

    def is_quadratic(self, group: str) -> bool:
        """Say whether a group lies on two axes of one term."""
        return group in self.neighbours(group)

    # Hard permutations

    def hypotheses(self, perms: Mapping[str, Tensor], model: Tensor | None = None) -> Hypotheses:
        """Make a batch and compute its objective in full.

        Args:
            perms: group -> int64 [b, n], for every group of `self.groups`.
            model: int64 [b], default all 0.
        """
        if model is None:
            batch = next((len(perm) for perm in perms.values()), 1)
            model = torch.zeros(batch, dtype=torch.int64)
        objective = self.objective(perms, model)
        return Hypotheses(dict(perms), model, objective, origin=torch.zeros_like(model))

    def identity(self, width: int = 1) -> Hypotheses:
        """Return `width` hypotheses per model that move nothing."""
        model = torch.arange(self.models).repeat_interleave(width)
        perms = {g: torch.arange(n).expand(len(model), n) for g, n in self.sizes.items()}
        return self.hypotheses(perms, model)

    def random(self, width: int, generator: torch.Generator) -> Hypotheses:
        """Return `width` hypotheses per model drawn uniformly."""
        model = torch.arange(self.models).repeat_interleave(width)
        perms = {
            g: torch.rand(len(model), n, generator=generator).argsort(1)
            for g, n in self.sizes.items()
        }
        return self.hypotheses(perms, model)

    def objective(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return D of each hypothesis, less twice its evidence, float64 [b], from all terms."""
        inner = self.constant.new_zeros(len(model))
        for group in self.groups:
            inner += self._unary_inner(group, perms, model)
        for term in self.terms:
            inner += term.inner(perms, model)
        return self.constant[model] - 2 * inner

    def _unary_inner(self, group: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        rows = torch.arange(self.sizes[group])
        picked = self.unary[group][model[:, None], rows, perms[group]]
        return picked.sum(1, dtype=torch.float64)

    def similarity(self, group: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return `S = dF/dP` of a group with the others fixed.

        Args:
            group: name of the group.
            perms: group -> int64 [b, n].
            model: int64 [b].

        Returns:
            [b, n, n] in the problem's dtype; `S[w, i, j]` is what is gained by putting unit j of
            the source at place i. For a group that is not quadratic, moving it from p to q
            changes D by `-2 sum_i (S[i, q_i] - S[i, p_i])`.
        """
        total = self.unary[group][model]
        for term in self.touching(group):
            for place, name in enumerate(term.groups):
                if name == group:
                    total += term.similarity(place, perms, model)
        return total

    def gain(self, group: str, similarity: Tensor, perm: Tensor, hypotheses: Hypotheses) -> Tensor:
        """Return by how much D falls when `group` moves to `perm`, float64 [b].

        Only the terms that the group touches enter: they are all in `similarity`, unless the
        group is quadratic, where the terms it touches are evaluated anew.

        Args:
            group: the group that moves.
            similarity: [b, n, n], its similarity at `hypotheses`.
            perm: int64 [b, n], where it moves.
            hypotheses: the batch before the move.
        """
        if self.is_quadratic(group):
            model, before = hypotheses.model, hypotheses.perms
            after = {**before, group: perm}
            return 2 * (self.touched(group, after, model) - self.touched(group, before, model))
        old = hypotheses.perms[group]
        difference = similarity.gather(2, perm[..., None]) - similarity.gather(2, old[..., None])
        return 2 * difference.sum((1, 2), dtype=torch.float64)

    def touched(self, group: str, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return the part of F that depends on a group, float64 [b]."""
        inner = self._unary_inner(group, perms, model)
        for term in self.touching(group):
            inner += term.inner(perms, model)
        return inner

    # Soft permutations

    def soft_objective(self, soft: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return F of doubly stochastic matrices, float64 [b].

        Args:
            soft: group -> [b, n, n].
            model: int64 [b].
        """
        total = self.constant.new_zeros(len(model))
        for group in self.groups:
            product = self.unary[group][model] * soft[group]
            total += product.sum((1, 2), dtype=torch.float64)
        for term in self.terms:
            gradient = term.soft_similarity(0, soft, model)
            total += (gradient * soft[term.groups[0]]).sum((1, 2), dtype=torch.float64)
        return total

    def soft_similarity(self, soft: Mapping[str, Tensor], model: Tensor) -> dict[str, Tensor]:
        """Return the gradient of F at doubly stochastic matrices, group -> [b, n, n]."""
        gradient = {group: self.unary[group][model] for group in self.groups}
        for term in self.terms:
            for place, group in enumerate(term.groups):
                gradient[group] += term.soft_similarity(place, soft, model)
        return gradient

    # Exact evaluation

    def distance(self, permutation: Permutation, model: int = 0) -> float:
        """Return D of one permutation in float64, from the checkpoints themselves."""
        return sum(self.tensor_distances(permutation, model).values())

    def tensor_distances(self, permutation: Permutation, model: int = 0) -> dict[str, float]:
        """Return what each counted tensor contributes to `distance`."""
        moved = permutation.apply(self._sources[model])
        distances = {}
        for name, tensor_spec in self.spec.tensors.items():
            if tensor_spec.counted:
                a = self.metric.scaled(self.spec.tensor_of(name, self._target))
                b = self.metric.scaled(self.spec.tensor_of(name, moved))
                distances[name] = float((a - b).square().sum())
        return distances

    def permutation(self, hypotheses: Hypotheses, index: int = 0) -> Permutation:
        """Return one hypothesis as a Permutation of all groups of the spec."""
        perms = {name: torch.zeros(1, dtype=torch.int64) for name in self.spec.groups}
        perms |= {name: perm[index].cpu() for name, perm in hypotheses.perms.items()}
        return Permutation(self.spec, perms)


def _compute_dtype(spec: PermutationSpec, states: Sequence[StateDict]) -> torch.dtype:
    """Half precision is computed in float32; float64 wherever a counted tensor has it."""
    double = any(
        spec.tensor_of(name, state).dtype == torch.float64
        for name, tensor_spec in spec.tensors.items()
        if tensor_spec.counted
        for state in states
    )
    return torch.float64 if double else torch.float32
