"""`gpu-align canonicalize`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from gpu_align._align import PRESERVED, canonical_multipliers, function_check
from gpu_align._checkpoint import load_checkpoint, save_checkpoint
from gpu_align._cli._model import NamedModel, choose_spec, load_model
from gpu_align._cli._options import CHECKPOINT_HELP, InputShape, Json, Key, Model, Seed, SpecFile
from gpu_align._cli._outputs import check_checkpoint
from gpu_align._cli._terminal import (
    console,
    display,
    facts,
    number,
    print_json,
    print_line,
    stdout_to_stderr,
    warn,
)
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._symmetry import PermutationSpec, StateDict, rescale

UNCHECKED = "the function was not checked, because no model was given; pass --model to be sure"


def canonicalize(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Write the canonical checkpoint.")
    ],
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    spec: SpecFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Bring scales and signs of units into one form; the function stays the same.

    Networks that differ only by scales (relu, batch norm) or signs (tanh, sin) of their units
    become equal. OUT may be CHECKPOINT itself.
    """
    if model is None and spec is None:
        raise InputError(
            "which signs and scales are free depends on the activations, which a checkpoint does "
            "not name; add --model and --input-shape, or --spec"
        )
    with display(quiet=False) as screen, stdout_to_stderr():
        screen.stage("reading the checkpoint")
        before = load_checkpoint(checkpoint, key=key)
        others = [path for path in (spec,) if path is not None]
        check_checkpoint(out, before, reads=[*others, *(before.files if before.shards else ())])
        screen.stage("finding symmetries")
        named = load_model(model, input_shape, seed)
        symmetries = choose_spec(spec, named, None)
        before = before.named_like(symmetries.keys)
        screen.stage("balancing")
        units, rows = canonical_multipliers(symmetries, before.tensors)
        after = rescale(symmetries, before.tensors, units, rows)
        checked = _checked(named, symmetries, before.tensors, after, units, rows)
        screen.stage("writing")
        save_checkpoint(out, after, like=before)
    about = {
        "negated": {name: int((units[name] < 0).sum()) for name in units},
        "scaled": [name for name in units if symmetries.groups[name].scaled],
        "norm_scales": list(rows),
        "squared_norm_before": _squared_norm(symmetries, before.tensors),
        "squared_norm": _squared_norm(symmetries, after),
        **checked,
    }
    warnings = [*before.warnings, *([UNCHECKED] if named is None else [])]
    for warning in warnings:
        warn(warning)
    if as_json:
        head = {"schema": "gpu-align/canonicalize/1", "checkpoint": str(checkpoint)}
        print_json({**head, **about, "warnings": warnings, "written": {"out": str(out)}})
        return
    _print_summary(symmetries, about)
    print_line(f"wrote canonical checkpoint: {out}")


def _checked(
    named: NamedModel | None,
    spec: PermutationSpec,
    before: StateDict,
    after: StateDict,
    units: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> dict[str, float | None]:
    """Compare the outputs before and after, with float64 weights and with those written.

    Raises:
        GpuAlignError: they differ by more than the rounding of the weights.
    """
    check = None if named is None else function_check(named.module, named.inputs)
    if check is None:
        return {"function_difference": None, "rounding_difference": None}
    wide = {name: _double(tensor) for name, tensor in before.items()}
    difference = check(wide, rescale(spec, wide, units, rows))
    if not difference <= PRESERVED:
        raise GpuAlignError(
            "the canonical network does not compute the same outputs (relative difference "
            f"{difference:.3g}), so nothing was written; please report it with the output of "
            "`gpu-align inspect --json`"
        )
    return {"function_difference": difference, "rounding_difference": check(before, after)}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if torch.is_floating_point(tensor) else tensor


def _squared_norm(spec: PermutationSpec, state: StateDict) -> float:
    """Return the squared norm of all parameters."""
    return math.fsum(
        float(spec.tensor_of(name, state).double().square().sum())
        for name, tensor in spec.tensors.items()
        if tensor.counted
    )


def _print_summary(spec: PermutationSpec, about: Mapping[str, Any]) -> None:
    signed = sum(spec.units(name) for name, group in spec.groups.items() if group.signed)
    scaled = sum(map(spec.units, about["scaled"]))
    rows = {
        "signs": f"{sum(about['negated'].values())} of {signed} units negated",
        "scales": f"{scaled} units balanced",
        "norm scales": f"rows of {len(about['norm_scales'])} layers in front of batch norms",
        "squared norm": f"{number(about['squared_norm_before'])} -> "
        f"{number(about['squared_norm'])}",
    }
    if about["function_difference"] is not None:
        rows["function"] = (
            f"preserved: outputs differ by {about['function_difference']:.1e} relative (float64), "
            f"by {about['rounding_difference']:.1e} with the weights rounded"
        )
    console().print(facts(rows))
