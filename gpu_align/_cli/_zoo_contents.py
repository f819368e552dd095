"""What `zoo inspect` prints."""

import math
import operator
from collections.abc import Sequence

import torch

from gpu_align._cli._terminal import columns, console, print_json, print_line, warn
from gpu_align._zoo import ZooContents

_SHOWN = 20
_TENSORS = 8
_NUMBERS = ["models", "parameters", "bytes each", "MB in all"]


def _size(tensors: Sequence[tuple[str, str, Sequence[int]]]) -> tuple[int, int]:
    """Return how many parameters a model has, and how many bytes they take."""
    counts = [math.prod(shape) for _, _, shape in tensors]
    widths = [getattr(torch, dtype).itemsize for _, dtype, _ in tensors]
    return sum(counts), sum(map(operator.mul, counts, widths))


def tell_contents(source: str, found: ZooContents, *, as_json: bool) -> None:
    """Print what a zoo consists of."""
    if as_json:
        print_json({"source": source, **found.to_json()})
        return
    runs = f", of {found.runs} training runs" if found.runs else ""
    print_line(f"{source}: {found.models} {'model' if found.models == 1 else 'models'}{runs}")
    if found.families:
        table = columns("family", *_NUMBERS, numbers=_NUMBERS)
        for name, family in found.families.items():
            size, each = _size(family["tensors"])
            total = f"{each * family['models'] / 1e6:.3g}"
            table.add_row(name, str(family["models"]), str(size), str(each), total)
        console().print(table)
    for name, family in found.families.items():
        some = [f"{n} {list(shape)} {dtype}" for n, dtype, shape in family["tensors"]]
        more = f", and {len(some) - _TENSORS} more" if len(some) > _TENSORS else ""
        print_line(f"{name}: {', '.join(some[:_TENSORS])}{more}")
        print_line(f"  {family['symmetries']}")
    for name, (kind, reason) in list(found.failed.items())[:_SHOWN]:
        warn(f"{name} is {kind}: {reason}")
    if len(found.failed) > _SHOWN:
        warn(f"{len(found.failed) - _SHOWN} more cannot be used; --json names them all")
    if found.others:
        print_line(f"{len(found.others)} other files, such as {found.others[0]}")
