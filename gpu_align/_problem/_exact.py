"""Distances of a problem in float64, from the checkpoints themselves, and its permutations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpu_align._problem._digest import hash_tensors
from gpu_align._problem._hypotheses import Hypotheses, in_chunks
from gpu_align._problem._metric import Metric
from gpu_align._problem._signed import is_signed, sign_of, unsigned, with_sign
from gpu_align._problem._stack import squared_norms
from gpu_align._symmetry import (
    Permutation,
    PermutationSpec,
    StateDict,
    Weights,
    part_elements,
    permuted,
)


class ExactEvaluation:
    """What an `AlignmentProblem` makes of the weights and the groups of its spec."""

    spec: PermutationSpec
    metric: Metric
    unit: float
    sources: Weights
    sizes: Mapping[str, int]
    constant: Tensor
    _target: Weights

    @property
    def device(self) -> torch.device:
        """Where terms and hypotheses lie."""
        return self.sources.device

    @property
    def target(self) -> Weights:
        """The weights that stay, of one model."""
        return self._target

    def distance(self, permutation: Permutation, model: int = 0) -> float:
        """Return D of one permutation in float64, from the checkpoints themselves."""
        return self.unit * sum(self._tensor_distances(permutation, model).values())

    def is_target(self, permutation: Permutation, model: int = 0) -> bool:
        """Say whether a permutation makes a source the target, bit for bit."""
        return not any(self._tensor_distances(permutation, model).values())

    def tensor_distances(self, permutation: Permutation, model: int = 0) -> dict[str, float]:
        """Return what each counted tensor contributes to `distance`."""
        found = self._tensor_distances(permutation, model)
        return {name: self.unit * distance for name, distance in found.items()}

    def _tensor_distances(self, permutation: Permutation, model: int) -> dict[str, float]:
        perms, signs, phases = (
            {name: vector[None].to(self.device) for name, vector in found.items()}
            for found in (permutation.perms, permutation.signs, permutation.phases)
        )
        number = torch.full((1,), model, device=self.device)
        found = self._distances(perms, signs, number, phases)
        values = torch.cat([*found.values(), self.constant.new_empty(0)]).cpu().tolist()
        return dict(zip(found, values, strict=True))

    def each_tensor_distance(self, hypotheses: Hypotheses | None = None) -> dict[str, Tensor]:
        """Return what each tensor contributes to D of every hypothesis, tensor -> float64 [b].

        Without hypotheses those of every source as given, [m]. They are to be multiplied by `unit`.
        """
        if hypotheses is None:
            return self._distances({}, {}, torch.arange(len(self.sources), device=self.device))
        return self._distances(*self.group_vectors(hypotheses), hypotheses.model)

    def _distances(
        self,
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
        model: Tensor,
        phases: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the distances of sources by number, int64 [b]; without `perms` as they lie."""
        names = (name for name, tensor in self.spec.tensors.items() if tensor.counted)
        rest = (perms, signs, model, phases or {})
        return {name: self._distances_of(name, *rest) for name in names}

    def _distances_of(
        self,
        name: str,
        perms: Mapping[str, Tensor],
        signs: Mapping[str, Tensor],
        model: Tensor,
        phases: Mapping[str, Tensor],
    ) -> Tensor:
        """Return what one tensor contributes, float64 [b]."""
        stack, a = self.sources[name], self.metric.scaled_each(self._target[name])
        own = self.spec.tensors[name].groups

        def of(part: slice) -> Tensor:
            b = stack.index_select(0, model[part])
            if perms:
                vectors = (
                    {group: vector[part] for group, vector in found.items() if group in own}
                    for found in (perms, signs, phases)
                )
                b = permuted(b.double() if phases else b, name, self.spec, *vectors)
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

    # Between hypotheses and the permutations of a spec

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
        perms, signs = (
            {name: vector[None].to(self.device) for name, vector in found.items()}
            for found in (permutation.perms, permutation.signs)
        )
        return self.matrices(perms, signs)

    def matrices(
        self, perms: Mapping[str, Tensor], signs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Undo `group_vectors`: group -> int64 [b, units] as variable -> int64 [b, n]."""
        found = {}
        for variable in self.sizes:
            group = unsigned(variable)
            found[variable] = perms[group]
            if is_signed(variable) and group in signs:
                found[variable] = with_sign(perms[group], signs[group] < 0)
        return found
