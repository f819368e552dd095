"""A spec under other names of its tensors."""

from collections.abc import Mapping
from dataclasses import replace

from gpu_align._errors import folded
from gpu_align._symmetry._axis import Axis
from gpu_align._symmetry._parts import NormScale, Phase, Pin
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._tensor_spec import TensorSpec


def spec_of_file(
    spec: PermutationSpec, names: Mapping[str, str], others: StateDict
) -> PermutationSpec:
    """Return the spec of a module as that of a file, which calls its tensors otherwise.

    Args:
        spec: of the module.
        names: name in the module -> name in the file; what is not among them keeps its name.
        others: tensors of the file that the module does not have: they stay as they are.
    """

    def of(name: str) -> str:
        return names.get(name, name)

    fixed = {
        name: TensorSpec(tuple(map(Axis.fixed, tensor.shape)), counted=False)
        for name, tensor in others.items()
    }
    unused = f"; {folded(list(fixed), 3)} is not part of it and stays as it is" if fixed else ""
    return replace(
        spec,
        groups={
            name: group
            if group.phase is None
            else replace(group, phase=Phase(of(group.phase.bias), group.phase.shift))
            for name, group in spec.groups.items()
        },
        tensors={of(name): tensor for name, tensor in spec.tensors.items()} | fixed,
        ties={of(name): of(kept) for name, kept in spec.ties.items()},
        pins=tuple(Pin(of(pin.tensor), pin.axis, pin.reason) for pin in spec.pins),
        norm_scales=tuple(
            NormScale(
                of(scale.weight),
                None if scale.bias is None else of(scale.bias),
                *(of(scale.mean), of(scale.variance), scale.eps),
            )
            for scale in spec.norm_scales
        ),
        origin=spec.origin + unused,
    )
