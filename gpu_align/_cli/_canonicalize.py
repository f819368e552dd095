"""`gpu-align canonicalize`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    InputShape,
    Json,
    Key,
    Model,
    Output,
    Seed,
    SpecFile,
)
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
from gpu_align._errors import InputError

if TYPE_CHECKING:
    from gpu_align._align import CanonicalForm
    from gpu_align._symmetry import Comparison, PermutationSpec

UNCHECKED = "the function was not checked, because no model was given; pass --model to be sure"


def canonicalize(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Write the canonical checkpoint.")
    ],
    key: Key = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: SpecFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Bring scales, signs and phases of units into one form; the function stays the same.

    Networks that differ only by scales (relu, batch norm), signs (tanh, sin) or phases (sin) of
    their units become equal. OUT may be CHECKPOINT itself.
    """
    from gpu_align._align import canonical_form
    from gpu_align._checkpoint import load_checkpoint, save_checkpoint
    from gpu_align._cli._model import load_model, read_spec
    from gpu_align._cli._outputs import check_checkpoint, check_preserved

    with display(quiet=False) as screen, stdout_to_stderr():
        screen.stage("reading the checkpoint")
        before = load_checkpoint(checkpoint, key=key)
        others = [path for path in (spec,) if path is not None]
        check_checkpoint(out, before, reads=[*others, *(before.files if before.shards else ())])
        screen.stage("finding symmetries and balancing")
        beside = [checkpoint] if spec is None else []
        named = load_model(model, input_shape, seed, output, beside=beside, state=before.tensors)
        if named is None and spec is None:
            raise InputError(
                "which signs and scales are free depends on the activations, which a checkpoint "
                "does not name; add --model and --input-shape, or --spec"
            )
        form = canonical_form(before.tensors, read_spec(spec, named), named)
        compared = None if named is None else form.comparisons(named)
        check_preserved(None if compared is None else compared[0], "canonical")
        screen.stage("writing")
        save_checkpoint(out, form.state_dict, like=before)
    about = _document(form, compared)
    warnings = [*before.warnings, *([UNCHECKED] if named is None else [])]
    for warning in warnings:
        warn(warning)
    if as_json:
        head = {"schema": "gpu-align/canonicalize/1", "checkpoint": str(checkpoint)}
        print_json({**head, **about, "warnings": warnings, "written": {"out": str(out)}})
        return
    _print_summary(form.spec, about)
    print_line(f"wrote canonical checkpoint: {out}")


def _document(
    form: "CanonicalForm", compared: "tuple[Comparison, Comparison] | None"
) -> dict[str, Any]:
    before, after = form.squared_norms()
    shifted = {name: int((phases != 0).sum()) for name, phases in form.phases.items()}
    return {
        "negated": {name: int((signs < 0).sum()) for name, signs in form.units.items()},
        "scaled": [name for name in form.units if form.spec.groups[name].scaled],
        "norm_scales": list(form.rows),
        **({"shifted": shifted} if shifted else {}),
        "squared_norm_before": before,
        "squared_norm": after,
        "function_difference": None if compared is None else compared[0].difference,
        "rounding_difference": None if compared is None else compared[1].difference,
    }


def _print_summary(spec: "PermutationSpec", about: Mapping[str, Any]) -> None:
    signed = sum(spec.units(name) for name, group in spec.groups.items() if group.signed)
    scaled = sum(map(spec.units, about["scaled"]))
    rows = {
        "signs": f"{sum(about['negated'].values())} of {signed} units negated",
        "scales": f"{scaled} units balanced",
        "norm scales": f"rows of {len(about['norm_scales'])} layers in front of batch norms",
        "squared norm": f"{number(about['squared_norm_before'])} -> "
        f"{number(about['squared_norm'])}",
    }
    if "shifted" in about:
        phased = sum(map(spec.units, about["shifted"]))
        rows["phases"] = f"{sum(about['shifted'].values())} of {phased} biases shifted"
    if about["function_difference"] is not None:
        rows["function"] = (
            f"preserved: outputs differ by {about['function_difference']:.1e} relative (float64), "
            f"by {about['rounding_difference']:.1e} with the weights rounded"
        )
    console().print(facts(rows))
