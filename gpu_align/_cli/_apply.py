"""`gpu-align apply`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import CHECKPOINT_HELP, Json, Key
from gpu_align._cli._terminal import print_json, print_line, print_written, warn


def apply(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)],
    permutation: Annotated[
        Path, typer.Argument(metavar="PERMUTATION", help="Written by `align --permutation`.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Write the reordered checkpoint.")
    ],
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Undo the permutation instead.")
    ] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Reorder the units of CHECKPOINT by a permutation; its function stays the same."""
    from gpu_align._checkpoint import load_checkpoint, save_checkpoint
    from gpu_align._cli._outputs import check_checkpoint
    from gpu_align._symmetry import Permutation

    before = load_checkpoint(checkpoint, key=key)
    check_checkpoint(out, before, reads=[permutation, *(before.files if before.shards else ())])
    order = Permutation.load(permutation)
    order = order.inverse() if inverse else order
    before = before.named_like(order.spec.keys)
    save_checkpoint(out, order.apply(before.tensors), like=before)
    for warning in before.warnings:
        warn(warning)
    moved, units = sum(order.moved().values()), sum(map(order.spec.units, order.spec.groups))
    shifted = {name: int((phase != 0).sum()) for name, phase in order.phases.items()}
    if as_json:
        about = {"moved": order.moved(), "units": units, "warnings": list(before.warnings)}
        about |= {"shifted": shifted} if shifted else {}
        print_json({"schema": "gpu-align/apply/1", **about, "written": {"out": str(out)}})
        return
    verb = "moved or negated" if order.signs else "moved"
    print_line(f"{moved} of {units} units in {len(order.perms)} groups {verb}")
    if shifted:
        print_line(f"{sum(shifted.values())} biases shifted by half periods")
    print_written({"out": str(out)}, "-o")
