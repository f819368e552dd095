"""A proof with its duals, and its file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint import atomic_write, read_safetensors
from gpu_align._errors import CheckpointError
from gpu_align._problem import hash_tensors
from gpu_align._proof._convex import Convex
from gpu_align._proof._leftover import Leftover
from gpu_align._proof._record import ProofRecord
from gpu_align._proof._stage import KINDS, Stage
from gpu_align._symmetry import Permutation, PermutationSpec

AnyStage = Stage | Convex | Leftover

SCHEMA = "gpu-align/proof/1"
_KINDS = {"duals": Stage, "convex": Convex, "leftover": Leftover}
_PERM, _SIGN, _ALIVE, _GIVEN = (
    "perm^",
    "sign^",
    "alive^",
    "given^",
)  # no group's name has this character


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Proof(ProofRecord):
    """What was proved about a permutation, with the duals from which anyone can check it.

    Attributes are those of `ProofRecord`, and:

    Attributes:
        permutation: what it is about.
        stages: duals in the order of their use: each excludes pairs for those after it.
        alive: group -> bool [n, p], the pairs that a better permutation may still have; p = 2 n
            where units may be negated, those with the other sign last.
        model: which source of the problem.
        seal: `digest()` when it was made.
    """

    permutation: Permutation
    stages: tuple[AnyStage, ...]
    alive: Mapping[str, Tensor]
    model: int
    seal: str = ""

    def sealed(self) -> "Proof":
        """Return the proof with its seal."""
        return replace(self, seal=self.digest())

    def digest(self) -> str:
        """Return a hash of all that the claim rests on."""
        return hash_tensors([self._tensors()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the proof as safetensors.

        Raises:
            CheckpointError: the file cannot be written.
        """
        names = {kind: name for name, kind in _KINDS.items()}
        kinds = [names[type(stage)] for stage in self.stages]
        about = {"record": self.to_json(), "stages": kinds, "model": self.model}
        about["spec"] = self.permutation.spec.to_json()
        metadata = {SCHEMA: json.dumps(about), "seal": self.seal}
        with atomic_write(path, CheckpointError) as temporary:
            try:
                save_file(self._tensors(), temporary, metadata=metadata)
            except SafetensorError as error:
                raise CheckpointError(
                    f"cannot write {os.fspath(path)}: {error}; check free space, or choose another "
                    "path"
                ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Proof":
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is no proof. One that was changed is refused by `check_proof`.
        """
        advice = "expected a file written by `gpu-align align --proof` or Proof.save"
        try:
            tensors, metadata = read_safetensors(Path(path))
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"cannot read {os.fspath(path)!r}: {error}; {advice}") from error
        try:
            about = metadata or {}
            proof = _read(tensors, json.loads(about[SCHEMA]), about["seal"])
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{os.fspath(path)!r} is not a proof ({repr(error)[:200]}); {advice}"
            ) from error
        return proof

    def _tensors(self) -> dict[str, Tensor]:
        found = {_PERM + group: perm for group, perm in self.permutation.perms.items()}
        found |= {_SIGN + group: sign for group, sign in self.permutation.signs.items()}
        found |= {_ALIVE + group: mask for group, mask in self.alive.items()}
        for number, stage in enumerate(self.stages):
            found |= {f"{number}^{name}": tensor for name, tensor in stage.tensors()}
            if isinstance(stage, Stage) and stage.given is not None:
                group, *pair = stage.given
                found[f"{number}^{_GIVEN}{group}"] = torch.tensor(pair, device="cpu")
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _read(tensors: Mapping[str, Tensor], about: Mapping[str, Any], seal: str) -> Proof:
    """Make a proof of what a file holds."""
    record = ProofRecord.from_json(about["record"])
    perms, signs = _named(tensors, _PERM), _named(tensors, _SIGN)
    return Proof(
        **vars(record),
        permutation=Permutation(PermutationSpec.from_json(about["spec"]), perms, signs),
        stages=tuple(
            _stage(kind, _named(tensors, f"{number}^"))
            for number, kind in enumerate(about["stages"])
        ),
        alive=_named(tensors, _ALIVE),
        model=int(about["model"]),
        seal=seal,
    )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _stage(kind: str, tensors: Mapping[str, Tensor]) -> AnyStage:
    if _KINDS[kind] is Leftover:
        return Leftover()
    if _KINDS[kind] is Convex:
        return Convex(_named(tensors, "point^"))
    rows = [_named(tensors, f"{kind}^") for kind in KINDS]
    inner = tuple(
        (rows[0][n], rows[1][n], rows[2][n], rows[3][n]) for n in map(str, range(len(rows[0])))
    )
    given = [(group, *pair.tolist()) for group, pair in _named(tensors, _GIVEN).items()]
    return Stage(_named(tensors, "column^"), inner, given[0] if given else None)
