"""Which models are alike: families, their symmetries, and what fits none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gpu_align._align import Model, model_beside
from gpu_align._checkpoint import rename
from gpu_align._errors import ModelError, SpecError
from gpu_align._symmetry import PermutationSpec, StateDict, chain_spec
from gpu_align._zoo._pieces import Failure, Piece, Signature
from gpu_align._zoo._read import Scanned, first_line, load_tensors, read_stack


@dataclass(frozen=True, eq=False)
class Kind:
    """Models of one signature.

    Attributes:
        name: of the family.
        signature: what they share.
        pieces: numbers of the pieces that have them.
        state: one of them.
    """

    name: str
    signature: Signature
    pieces: tuple[int, ...]
    state: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Symmetries:
    """What is known of the symmetries of a family.

    Attributes:
        spec: of its models.
        target: the network that was named for them, with the names of the spec; None if none was.
        has_model: whether the model that was named is of them.
    """

    spec: PermutationSpec
    target: StateDict | None
    has_model: bool


def kinds_of(scanned: Sequence[Scanned]) -> tuple[list[Kind], dict[int, Failure]]:
    """Sort pieces by their signatures; those whose example cannot be read are failures."""
    members: dict[Signature, list[int]] = {}
    failures: dict[int, Failure] = {}
    for number, each in enumerate(scanned):
        if each.signature is None:
            assert each.failure is not None
            failures[number] = each.failure
        else:
            members.setdefault(each.signature, []).append(number)
    kinds: list[Kind] = []
    taken: set[str] = set()
    for signature, pieces in members.items():
        example = _example([(number, scanned[number].piece) for number in pieces], failures)
        readable = tuple(number for number in pieces if number not in failures)
        if example is not None and readable:
            name = _name(signature, taken)
            kinds.append(Kind(name, signature, readable, example))
    return kinds, failures


def _example(
    pieces: Sequence[tuple[int, Piece]], failures: dict[int, Failure]
) -> dict[str, Tensor] | None:
    """Return the first model that can be read; note those before it."""
    for number, piece in pieces:
        if piece.stacked and piece.count:
            found = read_stack(piece, 0, 1)
            return {name.removeprefix(piece.prefix): t[0] for name, t in found.items()}
        loaded = load_tensors(piece)
        if not isinstance(loaded, Failure):
            return dict(loaded.tensors)
        failures[number] = loaded
    return None


def _name(signature: Signature, taken: set[str]) -> str:
    """Name a family by the number of its parameters, and by a further number if that is taken."""
    total = 0
    for _, _, shape in signature:
        size = 1
        for extent in shape:
            size *= extent
        total += size
    name, number = f"{total}p", 1
    while name in taken:
        number += 1
        name = f"{total}p-{number}"
    taken.add(name)
    return name


@dataclass(frozen=True, eq=False)
class Known:
    """What was given of symmetries and targets.

    Attributes:
        targets: networks that others are aligned to.
        specs: symmetries that were given.
        model: what they are found in, and what functions are compared in.
    """

    targets: Sequence[StateDict]
    specs: Sequence[PermutationSpec]
    model: Model | None

    def of(self, kind: Kind, piece: Piece) -> Symmetries | Failure:
        """Return the symmetries of a family, or why it cannot be aligned."""
        spec, has_model, reason = self._spec(kind.state, piece)
        if spec is None:
            return Failure("foreign", reason)
        if not self.targets:
            return Symmetries(spec, None, has_model)
        for target in self.targets:
            named = rename(target, spec.keys).state
            if fits(spec, named):
                return Symmetries(spec, named, has_model)
        return Failure("foreign", "it has other names or shapes than every network to align to")

    def _spec(self, state: StateDict, piece: Piece) -> tuple[PermutationSpec | None, bool, str]:
        """Return the spec, whether it is of the model, and why there is none."""
        for spec in self.specs:
            if fits(spec, rename(state, spec.keys).state):
                return spec, self._is_of_model(spec), ""
        if self.model is not None:
            found = self.model.find_spec()
            if fits(found, rename(state, found.keys).state):
                return found, True, ""
        if not piece.stacked:
            try:
                beside = model_beside([piece.path], state, None, None)
                if beside is not None:
                    return beside.find_spec(), False, ""
            except (ModelError, SpecError) as error:
                return None, False, f"its symmetries cannot be found: {first_line(error)}"
        try:
            return chain_spec(state), False, ""
        except SpecError as error:
            return None, False, f"its symmetries are not known: {first_line(error)}"

    def _is_of_model(self, spec: PermutationSpec) -> bool:
        if self.model is None:
            return False
        names = self.model.module.state_dict().keys()
        return set(spec.tensors) <= set(names)


def fits(spec: PermutationSpec, state: StateDict) -> bool:
    """Say whether a state dict has the names and shapes of a spec."""
    try:
        spec.validate(state)
    except SpecError:
        return False
    return True
