"""canonicalize: one network out of all that differ from it by signs and scales only."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gpu_align._align._hugging_face import model_beside
from gpu_align._align._networks import Model, Network, check_ties, checked_keys, state_of
from gpu_align._checkpoint import Renamed, rename
from gpu_align._errors import InputError
from gpu_align._symmetry import (
    Comparison,
    Kept,
    PermutationSpec,
    StateDict,
    Units,
    balance,
    rescale,
    shift_phases,
)


def canonicalize(
    network: Network,
    *,
    key: str | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
) -> dict[str, Tensor]:
    """Bring scales, signs and phases of a network's units into one form; its function stays.

    Of a ReLU network what makes a unit may be doubled and what reads it halved; of a tanh network
    both may be negated; of a sine network the bias may be shifted by half a period and what reads
    the unit negated. Networks that differ only so become equal (to rounding):

    1. rows that a batch norm frees of their scale get norm 1, with their running statistics;
    2. of each unit with a scale, what makes it and what reads it get the same norm, which
       minimises the total squared norm of the parameters;
    3. of each unit with a phase, the bias is shifted by half periods until it is nearest to 0;
    4. of each unit with a sign, what makes it gets a sum that is not negative, in the order of the
       groups. Only tensors count that no later group and nothing of its own changes again.

    What has no scale is left alone: units that nothing makes or nothing reads, rows of zeros. A row
    stays longer than 1 where its running variance would become negative.

    Args:
        network: a module, a state dict, or the path of a checkpoint.
        key: of the state dict in a file that has several, see `load_checkpoint`.
        spec: its symmetries. Default: discovered from the module, which needs `example_inputs`, or
            from the model of Hugging Face transformers that a `config.json` beside it names.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        outputs: the outputs of the module that must stay as they are, see `align`.

    Returns:
        The same names in the same order, dtypes and devices kept; computed in float64 and rounded
        once. Tensors that do not change are passed on as they are.

    Raises:
        InputError: an argument cannot be used; its children SpecError, CheckpointError and
            ModelError say what is wrong.
    """
    checked_keys([network], key)
    model: Model | None = None
    if isinstance(network, nn.Module):
        model = Model(network, example_inputs, outputs)
    elif spec is None:
        model = model_beside([network], state_of(network, key), example_inputs, outputs)
    return canonical_form(network, spec, model, key).state_dict


@dataclass(frozen=True)
class CanonicalForm:
    """A network in the one form that `canonicalize` brings it into.

    Attributes:
        spec: its symmetries.
        before: its tensors as they were, under the names of the spec.
        units: group -> by what its units are multiplied, signs times scales [units].
        rows: weight of a norm scale -> by what its rows are multiplied [rows].
        names: its own names.
        phases: group with a phase -> by how many half periods its biases are shifted, int64
            [units], before signs and scales.
    """

    spec: PermutationSpec
    before: StateDict
    units: dict[str, Tensor]
    rows: dict[str, Tensor]
    names: Renamed
    phases: dict[str, Tensor]

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The network's own names in the same order, dtypes and devices kept."""
        return self.names.restore(self._after)

    @cached_property
    def _after(self) -> dict[str, Tensor]:
        return self._changed(self.before)

    def _changed(self, state: StateDict) -> dict[str, Tensor]:
        shifted = shift_phases(self.spec, state, self.phases)
        return rescale(self.spec, shifted, self.units, self.rows)

    def comparisons(self, model: Model) -> tuple[Comparison, Comparison]:
        """Compare the outputs before and after: in float64, and as rounded.

        Raises:
            ModelError: the forward fails.
        """
        wide = {name: _double(tensor) for name, tensor in self.before.items()}
        exact = model.compare(wide, self._changed(wide))
        return exact, model.compare(self.before, self._after)

    def squared_norms(self) -> tuple[float, float]:
        """Return the squared norm of all parameters before and after."""
        counted = [name for name, tensor in self.spec.tensors.items() if tensor.counted]
        before, after = (
            math.fsum(
                float(self.spec.tensor_of(name, state).double().square().sum()) for name in counted
            )
            for state in (self.before, self._after)
        )
        return before, after


def canonical_form(
    network: Network,
    spec: PermutationSpec | None,
    model: Model | None,
    key: str | None = None,
) -> CanonicalForm:
    """Return what `canonicalize` does to a network; the spec is that of the model by default.

    Raises:
        InputError: see `canonicalize`.
    """
    if spec is None:
        if model is None:
            raise InputError(
                "which signs and scales are free depends on the activations, which a state dict "
                "does not name; pass the module with example_inputs, or a spec"
            )
        spec = model.find_spec()
    check_ties(network, spec)
    names = rename(state_of(network, key), spec.keys)
    state = names.state
    spec.validate(state)
    wide = {name: _double(spec.tensor_of(name, state)) for name in spec.tensors}
    phases = {
        name: nearest_to_0(spec.tensor_of(phase.bias, wide).cpu(), phase.shift)
        for name, phase in spec.phases.items()
    }
    wide = shift_phases(spec, wide, phases)
    scales, rows = balance(spec, wide)
    signs = _signs(spec, rescale(spec, wide, scales, rows))
    one = torch.ones((), dtype=torch.float64, device="cpu")
    units = {name: scales.get(name, one) * signs.get(name, one) for name in (*scales, *signs)}
    return CanonicalForm(spec, state, units, rows, names, phases)


def nearest_to_0(bias: Tensor, shift: float) -> Tensor:
    """Return how many half periods bring each bias between -shift / 2 and shift / 2, int64.

    Of the two ends it is the upper one.
    """
    return -(bias.to(torch.float64) / shift - 0.5).ceil().to(torch.int64)


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if torch.is_floating_point(tensor) else tensor


def _signs(spec: PermutationSpec, state: StateDict) -> dict[str, Tensor]:
    """Return for each signed group the signs [units] that make the sums positive."""
    signs: dict[str, Tensor] = {}
    for name, group in spec.groups.items():
        if not group.signed:
            continue
        made = _entries(spec, state, name, 1, settled=set(signs))
        rows = made if made else _entries(spec, state, name, -1, settled=set(signs))
        signs[name] = _leading_sign(rows, spec.units(name))
        state = rescale(spec, state, {name: signs[name]})
    return signs


def _entries(
    spec: PermutationSpec, state: StateDict, group: str, power: int, settled: set[str]
) -> list[Tensor]:
    """Return the entries [units, n] of each block that a group makes (1) or reads (-1).

    Blocks whose signs depend on a group that is not settled, or on this group twice, are left out.
    """
    parent = spec.groups[group].parent
    found = []
    for name, tensor in spec.tensors.items():
        for block in tensor.blocks if tensor.counted and group in tensor.groups else ():
            signed = [
                number
                for number, factor in block.units.items()
                if factor.power and factor.group not in settled and spec.groups[factor.group].signed
            ]
            own = Units(spec.groups[group].size, group, power)
            if [block.units[number] for number in signed] != [own]:
                continue
            front = signed if parent is None else [*block.numbers_of(parent), *signed]
            part = block.unfold(spec.tensor_of(name, state)).cpu()
            part = part.movedim(front, list(range(len(front))))
            found.append(part.reshape(spec.units(group), -1))
    return found


def _leading_sign(rows: list[Tensor], units: int) -> Tensor:
    """Return the sign of each row's sum [units]; of its first entry that is not 0 if that is 0."""
    if not rows:
        return torch.ones(units, dtype=torch.int64, device="cpu")
    entries = torch.cat(rows, 1)
    first = entries.gather(1, (entries != 0).int().argmax(1, keepdim=True))
    total = entries.sum(1, keepdim=True)
    leading = torch.where(total == 0, first, total)
    return torch.where(leading < 0, -1, 1).reshape(-1)
