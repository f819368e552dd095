"""Aligner: an encoder of units whose vectors say which unit of one network is which of another."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from gpu_align._assignment import AssignmentProblem, solve
from gpu_align._checkpoint import atomic_write, read_safetensors
from gpu_align._errors import CheckpointError, InputError
from gpu_align._problem import (
    AlignmentProblem,
    Family,
    families_of,
    index_of,
    is_signed,
    sign_of,
    signed_matrix,
    unsigned,
)
from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Features
from gpu_align.learn._elements import Elements
from gpu_align.learn._messages import MessagePassing
from gpu_align.learn._soft import Scores
from gpu_align.learn._space import Statistics, WeightSpace
from gpu_align.learn._structure import Structure

_FORMAT = "gpu-align/aligner/1"
_METADATA = "gpu_align_aligner"
# What reading, `Aligner` and `load_state_dict` raise on other or damaged files.
_DAMAGE = (OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError)

_TOGETHER = 1024
"""Networks whose units are looked at together."""

Vectors = Mapping[str, Tensor]
"""Variable of a problem -> [b, n, k], a vector for each unit; signed ones turn with their unit."""


@dataclass(frozen=True)
class AlignerSettings:
    """The size of an aligner.

    Attributes:
        channels: of the states of units.
        rounds: of messages.
        features: entries of the vector of a unit.
        fixed_rank: see `MessagePassing`.
        scale: by which products of unit vectors are multiplied before the training.
    """

    channels: int = 32
    rounds: int = 3
    features: int = 64
    fixed_rank: int | None = None
    scale: float = 10.0

    def __post_init__(self) -> None:
        if self.features < 1 or not self.scale > 0:
            raise InputError(
                "expected at least one feature and a scale above 0, got "
                f"features={self.features} and scale={self.scale}"
            )


class Aligner(nn.Module):
    """Scores which units of two networks are alike, by the cosine of their learned vectors.

    The vector of a unit goes where the unit goes, so the scores of two networks are reordered with
    the units of either, and of a network with itself in another order they are highest between a
    unit and itself. Units come to their vectors by messages along the network's own weights.

    Attributes:
        spec: of the networks.
        space: of their weights.
        structure: what networks must have in common with them; see `Structure`.
        settings: the size.
        record: how it was trained, plain values; empty before.
        families: what is scored as one, signs included.

    Source: Navon et al., Equivariant deep weight space alignment (ICML 2024), section 4; their
    encoder is a stack of equivariant linear layers.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        statistics: Statistics | None = None,
        settings: AlignerSettings | None = None,
    ) -> None:
        """Draw the weights from torch's generator.

        Args:
            spec: of the networks.
            statistics: by which weights are standardised; default they are not.
            settings: the size.

        Raises:
            InputError: the networks have no units to align, or a number is below 1.
        """
        super().__init__()
        self.spec, self.space, self.structure = spec, WeightSpace(spec), Structure.of(spec)
        self.settings, self.record = settings or AlignerSettings(), dict[str, Any]()
        if not self.families:
            raise InputError("these networks have no units that could be reordered")
        size = self.settings
        self.network = MessagePassing(
            self.space, size.channels, rounds=size.rounds, fixed_rank=size.fixed_rank
        )
        self.variables = [v for family in self.families for v in family.variables]
        self.vectors = nn.ModuleList(
            nn.Linear(size.channels, size.features, bias=variable in spec.groups)
            for variable in self.variables
        )
        self.log_scales = nn.Parameter(
            torch.full((len(self.variables),), math.log(size.scale), device="cpu")
        )
        self._keep(statistics)

    def _keep(self, statistics: Statistics | None) -> None:
        """Keep statistics as buffers, so that they move and are stored with the weights."""
        for number, cell in enumerate(self.space.cells):
            mean = torch.zeros(cell.fixed, device="cpu")
            std = torch.ones(cell.fixed, device="cpu")
            if statistics is not None:
                mean, std = statistics.mean[number], statistics.std[number]
            self.register_buffer(f"mean_{number}", mean.to(torch.float32, copy=True))
            self.register_buffer(f"std_{number}", std.to(torch.float32, copy=True))

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """See the class."""
        return families_of(self.spec, signs=True)

    @property
    def statistics(self) -> Statistics:
        """By which weights are standardised."""
        numbers = range(len(self.space.cells))
        return Statistics(
            *(tuple(self.get_buffer(f"{kind}_{n}") for n in numbers) for kind in ("mean", "std"))
        )

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return a vector of length 1 for each unit, variable -> [b, n, k].

        Args:
            features: weights of networks, one channel, in float32.

        Raises:
            InputError: they are not of this spec.
        """
        states = self.network(self.space.standardise(features, self.statistics))
        odd = states.by_group(odd=True)
        known = states.by_group() | {signed_matrix(group): x for group, x in odd.items()}
        return {
            variable: F.normalize(layer(known[variable]), dim=-1)
            for variable, layer in zip(self.variables, self.vectors, strict=True)
        }

    def compare(self, target: Vectors, source: Vectors) -> Scores:
        """Return the scores of the units of pairs of networks, variable -> [b, n, n].

        Args:
            target, source: vectors of b networks, or of one that is compared with all.
        """
        scales = self.log_scales.exp()
        return {
            variable: scale * target[variable] @ source[variable].mT
            for variable, scale in zip(self.variables, scales, strict=True)
        }

    @torch.no_grad()
    def align(self, target: Features, source: Features) -> Elements:
        """Return what brings the units of sources next to those of targets, for whole batches.

        Args:
            target: weights of b networks, one channel, or of one for all.
            source: weights of b networks.

        Raises:
            InputError: they are not of this spec.
        """
        scores = self.compare(self(target), self(source))
        perms: dict[str, Tensor] = {}
        for family in self.families:
            perms |= family.assign({v: scores[v] for v in family.variables}, _match)
        count, device = len(source[0]), source[0].device
        units = {name: self.spec.units(name) for name in self.spec.groups}
        still = {g: torch.arange(n, device=device).expand(count, n) for g, n in units.items()}
        return Elements(
            self.spec,
            {group: index_of(perms.get(group, perm)) for group, perm in still.items()},
            {unsigned(v): sign_of(perm) for v, perm in perms.items() if is_signed(v)},
        )

    @torch.no_grad()
    def scores(self, problem: AlignmentProblem) -> dict[str, Tensor]:
        """Return how much units of the sources are like those of the target, for `Learned`.

        Computed in float64, so that a network's scores do not depend on those beside it.

        Args:
            problem: of networks of the same structure; their names may be others.

        Returns:
            Each variable of the problem -> [m, n, n], in its dtype.

        Raises:
            InputError: the networks are of another structure.
        """
        other = Structure.of(problem.spec)
        self._check(other, problem.spec)
        names = dict(zip(self.structure.tensors, other.tensors, strict=True))
        own = dict(zip(other.groups, self.structure.groups, strict=True))
        wide = {n: t.to(problem.device, torch.float64) for n, t in self.state_dict().items()}

        def vectors(weights: Any, start: int, stop: int) -> dict[str, Tensor]:
            stacks = {name: weights.some(theirs, start, stop) for name, theirs in names.items()}
            features = self.space.from_stacks(stacks, torch.float64)
            found: dict[str, Tensor] = functional_call(self, wide, (features,))
            return found

        target = vectors(problem.target, 0, 1)
        parts = []
        for start in range(0, problem.models, _TOGETHER):
            stop = min(start + _TOGETHER, problem.models)
            parts.append(self.compare(target, vectors(problem.sources, start, stop)))
        found = {}
        for variable in problem.sizes:
            group = own[unsigned(variable)]
            mine = signed_matrix(group) if is_signed(variable) else group
            found[variable] = torch.cat([part[mine] for part in parts]).to(problem.dtype)
        return found

    def __repr__(self) -> str:
        """Say which aligner it is, so that searches by different ones are told apart."""
        return f"Aligner({_shape(self.spec)}, {self._digest[:16]})"

    @property
    def _digest(self) -> str:
        """The SHA-256 of the structure and of all weights."""
        digest = hashlib.sha256(self.structure.digest.encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _check(self, other: Structure, spec: PermutationSpec) -> None:
        if other.digest != self.structure.digest:
            raise InputError(
                f"the aligner was trained for networks with {_shape(self.spec)}, these have "
                f"{_shape(spec)} or other symmetries (digests {self.structure.digest[:12]} and "
                f"{other.digest[:12]}); train one for these by `gpu-align learn aligner`, or "
                "choose another search"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the spec, its digest and how the aligner was trained.

        Raises:
            CheckpointError: the file cannot be written.
        """
        about = {
            "format": _FORMAT,
            "digest": self.structure.digest,
            "settings": asdict(self.settings),
            "record": self.record,
            "spec": self.spec.to_json(),
        }
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        # One entry only: safetensors writes several in any order.
        with atomic_write(path, CheckpointError) as temporary:
            save_file(tensors, temporary, {_METADATA: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Aligner":
        """Read what `save` has written; nothing in the file is run.

        Raises:
            CheckpointError: the file cannot be read, or holds no aligner.
        """
        try:
            tensors, metadata = read_safetensors(Path(path))
            about = json.loads((metadata or {})[_METADATA])
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            spec = PermutationSpec.from_json(about["spec"])
            with torch.random.fork_rng(devices=[]):
                aligner = cls(spec, settings=AlignerSettings(**about["settings"]))
            aligner.load_state_dict(tensors)
            aligner.record = dict(about["record"])
            if aligner.structure.digest != about["digest"]:
                raise ValueError("its digest is not that of its spec")
        except _DAMAGE as failure:
            raise CheckpointError(
                f"{os.fspath(path)!r} holds no aligner that this release reads: {failure}; "
                "expected a file written by `gpu-align learn aligner` or Aligner.save"
            ) from failure
        return aligner.eval()

    @classmethod
    def bundled(cls) -> "Aligner":
        """Return the aligner that comes with gpu-align, for the perceptrons of `gpu-align demo`."""
        with resources.as_file(resources.files("gpu_align.learn") / BUNDLED) as path:
            return cls.load(path)


BUNDLED = "digits_mlp.safetensors"
"""The file of the aligner that comes with gpu-align; its training is in its record."""


def _match(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Solve assignments, see `Matcher`."""
    solution = solve(AssignmentProblem(similarity, maximize=True))
    columns = solution.col_ind.to(similarity.device)
    return columns, similarity.gather(2, columns[..., None]).sum((1, 2))


def _shape(spec: PermutationSpec) -> str:
    """Return the shapes of the parameters of a spec in few words."""
    shapes = ["x".join(map(str, t.shape)) for t in spec.tensors.values() if t.counted]
    shown = ", ".join(shapes[:8])
    return f"parameters {shown}" + (f" and {len(shapes) - 8} more" if len(shapes) > 8 else "")
