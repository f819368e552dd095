"""Trio: two networks, and the second one aligned to the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._align import (
    AlignmentResult,
    Model,
    Network,
    Settings,
    align_networks,
    model_beside,
    state_of,
)
from gpu_align._checkpoint import rename
from gpu_align._errors import InputError
from gpu_align._merge._average import check_alike
from gpu_align._network import Examples
from gpu_align._process import MODULES
from gpu_align._status import Status
from gpu_align._symmetry import Kept, Permutation, PermutationSpec, StateDict, unwrapped


@dataclass(frozen=True)
class Trio:
    """The tensors of A, of B and of B aligned, under the names of the module that runs them.

    Attributes:
        a, b, aligned: state dicts of the module.
        spec: the symmetries.
        found: how B was aligned; None if only the permutation is known.
    """

    a: StateDict
    b: StateDict
    aligned: StateDict
    spec: PermutationSpec
    found: AlignmentResult | None

    @classmethod
    def of(cls, a: Network, b: Network, model: Model, found: AlignmentResult | Permutation) -> Self:
        """Apply a permutation to B.

        Raises:
            InputError: the networks are of two architectures, or the permutation is of a third.
        """
        permutation = found.permutation if isinstance(found, AlignmentResult) else found
        state = state_of(b)
        renamed = rename(state, permutation.spec.keys)
        reordered = renamed.restore(permutation.apply(renamed.state))
        first, second, third = (_in_module(s, model) for s in (state_of(a), state, reordered))
        check_alike([first, second])
        result = found if isinstance(found, AlignmentResult) else None
        return cls(first, second, third, permutation.spec, result)


def aligned(
    a: Network,
    b: Network,
    model: Model,
    settings: Settings,
    spec: PermutationSpec | None = None,
) -> AlignmentResult:
    """Align B to A.

    Raises:
        KeyboardInterrupt: Ctrl-C; others see `align`.
    """
    [outcome] = align_networks([b], a, settings, spec=spec, model=model, throw=True)
    result = outcome.unwrap()
    if result.status is Status.INTERRUPTED:
        # The search ends at Ctrl-C with what it has; whoever stops the whole wants it to stop.
        raise KeyboardInterrupt
    return result


def model_for(
    networks: Sequence[Network],
    module: nn.Module | ExportedProgram | None,
    inputs: object,
    outputs: Kept | None,
    examples: Examples,
) -> Model:
    """Return what runs networks.

    Args:
        networks: a module among them is taken, or what a `config.json` beside a path describes.
        module: or a program; goes before these.
        inputs: example inputs; by default the first two of the examples.
        outputs: those that must stay as they are.
        examples: of the data.

    Raises:
        InputError: there is no module.
    """
    inputs = examples.lots[0][:2].inputs if inputs is None else inputs
    modules = [network for network in networks if isinstance(network, nn.Module)]
    if module is None and not modules:
        found = model_beside(networks, state_of(networks[0]), inputs, outputs)
        if found is None:
            raise InputError(
                "a barrier is measured on data, so the networks have to be run, and a state dict "
                "does not say how; pass a module as model=, or as one of the networks"
            )
        return found
    return Model(modules[0] if module is None else module, inputs, outputs)


def _in_module(state: StateDict, model: Model) -> dict[str, Tensor]:
    with MODULES:
        names = unwrapped(model.module).state_dict().keys()
    renamed = rename(model.in_module(state), names).state
    return {name: tensor for name, tensor in renamed.items() if name in names}
