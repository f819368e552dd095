"""Batches of permutations of a problem: made of vectors, of none that move, or drawn."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from gpu_align._device import RandomStream
from gpu_align._problem._family import Family
from gpu_align._problem._hypotheses import Hypotheses
from gpu_align._problem._signed import unsigned


class Batches:
    """What an `AlignmentProblem` makes hypotheses of."""

    sizes: Mapping[str, int]
    families: Mapping[str, Family]
    models: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where hypotheses lie."""

    @abstractmethod
    def objective(self, perms: Mapping[str, Tensor], model: Tensor) -> Tensor:
        """Return D of each hypothesis, less twice its evidence, float64 [b], from all terms."""

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
