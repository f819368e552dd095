"""Evidence: what else speaks for putting unit j of the source at place i of the target."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._problem._metric import times_power_of_two
from gpu_align._problem._signed import is_signed, unsigned


def scaled_evidence(
    evidence: Mapping[str, Tensor], sizes: Mapping[str, int], models: int, exponent: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield evidence in the units of a problem, with the matrix that it counts for.

    Args:
        evidence: group or signed matrix -> [n, n] or [m, n, n]. Of a group whose signs stay as
            they are the signed matrix is the plain one.
        sizes: matrix -> n.
        models: m.
        exponent: of the problem's metric.

    Yields:
        A key of `sizes`, and float64 [n, n] or [m, n, n].

    Raises:
        InputError: there is no such group, or it has another shape or is not finite.
    """
    for name, extra in evidence.items():
        variable = name if name in sizes else unsigned(name)
        size = sizes.get(variable, -1)
        if extra.shape not in ((size, size), (models, size, size)):
            groups = {n: size for n, size in sizes.items() if not is_signed(n)}
            raise InputError(
                f"evidence for {name!r} has shape {list(extra.shape)}, expected [n, n] for one "
                f"of the groups {groups}"
            )
        if not bool(extra.isfinite().all()):
            raise InputError(f"evidence for {name!r} has entries that are not finite numbers")
        yield variable, times_power_of_two(extra.to(torch.float64), -2 * exponent)
