"""Random symmetries."""

import torch
from torch import Tensor

from gpu_align._symmetry._spec import PermutationSpec


def draw(
    spec: PermutationSpec, generator: torch.Generator | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw uniformly from all symmetries of a spec.

    Returns:
        group -> int64 [units], and signed group -> int64 [units] of 1 and -1, on the CPU.
    """
    perms, signs = {}, {}
    for name, group in spec.groups.items():
        if group.fixed:
            perms[name] = torch.arange(group.size, device="cpu")[None]
            continue
        shape = (spec.units(name) // group.size, group.size)
        inside = torch.rand(shape, dtype=torch.float32, generator=generator, device="cpu")
        perms[name] = inside.argsort(1)
        if group.signed:
            bits = torch.randint(2, (spec.units(name),), generator=generator, device="cpu")
            signs[name] = 2 * bits - 1
    for name, group in spec.groups.items():
        if group.parent is not None:
            perms[name] += group.size * perms[group.parent].reshape(-1, 1)
    return {name: perm.reshape(-1) for name, perm in perms.items()}, signs
