"""`gpu-align align`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import (
    CHECKPOINT_HELP,
    DATA,
    EVIDENCE,
    METRICS,
    OUTPUTS,
    SEARCH,
    SEARCHES,
    STARTS,
    WIDTHS,
    AlignerFile,
    Device,
    InputShape,
    Json,
    Key,
    Log,
    Model,
    Output,
    Quiet,
    Seed,
    SpecFile,
)
from gpu_align._cli._terminal import display, stdout_to_stderr


def align(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help=f"{CHECKPOINT_HELP} Its units are reordered.")
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="Checkpoint of the same architecture; it stays."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="OUT",
            rich_help_panel=OUTPUTS,
            help="Write the reordered SOURCE, like the input but for the order of the units.",
        ),
    ] = None,
    permutation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            rich_help_panel=OUTPUTS,
            help="Write the permutation, for `gpu-align apply`.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            rich_help_panel=OUTPUTS,
            help="Write the result, for `gpu-align report`.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", rich_help_panel=OUTPUTS, help="Write a page with figures."
        ),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            rich_help_panel=OUTPUTS,
            help="Write the duals of --prove, from which `check_proof` proves the bound anew.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    log: Log = None,
    key: Key = None,
    target_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The same for TARGET, if it is not the same key."),
    ] = None,
    model: Model = None,
    input_shape: InputShape = None,
    output: Output = None,
    spec: SpecFile = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=DATA,
            help="Training data that both networks are run on, in the model: digits, mnist:FOLDER, "
            "cifar10:FOLDER, FILE.npz (x and y), package.module:loader or path/file.py:loader.",
        ),
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=DATA,
            help=f"What tells which units are alike: {', '.join(EVIDENCE)}; by default both with "
            "--data. The distance is that of the weights.",
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="A",
            rich_help_panel=DATA,
            help="How much activations count beside weights, by default 0.3; with 1 they are worth "
            "as much in all. auto aligns without, with 0.3 and with 1, and takes what loses least "
            "half-way, on a part of the data that is held back.",
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=SEARCH, help=f"How to look: {', '.join(SEARCHES)}."
        ),
    ] = "portfolio",
    aligner: AlignerFile = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SEARCH,
            help=f"What the distance is made of: {', '.join(METRICS)}.",
        ),
    ] = "l2",
    width: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help=f"Hypotheses kept by a search; by default {WIDTHS}.",
        ),
    ] = None,
    starts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help=f"Hypotheses that a search begins from; by default {STARTS}.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=SEARCH,
            help="Time for the search; a portfolio uses all of it, other searches may end before.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            *("--steps", "--sweeps"),
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help="Most steps of the search. Unlike seconds, the same result each time.",
        ),
    ] = None,
    prove: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=SEARCH,
            help="Seconds to prove that what was found is optimal, or how much closer another "
            "order could be at most.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=SEARCH,
            help="Continue the search that the same command began and that was interrupted. "
            "--seconds and --steps may change; they count from the beginning.",
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the order of SOURCE's units that brings it closest to TARGET.

    The reordered network computes the same function as SOURCE.

    Ctrl-C ends the search; the best order found by then is written all the same, and the exit code
    is 1. The search itself is kept in a file beside the first output (OUT.search), also now and
    then while it runs; the same command with --resume continues it, and ends as if it had never
    been interrupted. The file is removed once the outputs are written.
    """
    from gpu_align._align import Evidence, Settings, checked_seconds
    from gpu_align._cli._keeping import make_store
    from gpu_align._cli._outputs import Outputs
    from gpu_align._cli._pair import Pair
    from gpu_align._cli._searches import follows_loss, make_search
    from gpu_align._device import choose_engine
    from gpu_align._errors import InputError
    from gpu_align._network import Data
    from gpu_align._problem import as_metric
    from gpu_align._search import Budget

    if proof is not None and prove is None:
        raise InputError("--proof: there is no proof to write without --prove SECONDS; add it")
    outputs = Outputs(
        out=out, permutation=permutation, json_file=json_file, report=report, proof=proof
    )
    is_late = data is not None and follows_loss(search)  # made when the model is at hand
    settings = Settings(
        None if is_late else make_search(search, width, starts, aligner=aligner),
        as_metric(metric),
        choose_engine(device),
        seed,
        Budget(steps=steps, seconds=seconds),
        prove=checked_seconds(prove),
    )
    store = make_store(outputs, resume=resume)
    keys = (key, key if target_key is None else target_key)
    pair = Pair(source, target, keys, spec, model, input_shape, output, outputs, store)
    with display(quiet=quiet) as screen, stdout_to_stderr():
        known = None
        if data is not None:
            screen.stage("reading data")
            known = Data.of(data, seed=seed)
        if is_late and known is not None:
            pair = replace(pair, following=(search, known), aligner=aligner)
        found = Evidence.of(evidence, known, _number_or_name(alpha), seed)
        if found is not None:
            found = replace(found, progress=screen.examples).beside_weights
        done = pair.align(replace(settings, evidence=found), screen)
    pair.tell(done, as_json=as_json, quiet=quiet)


def _number_or_name(alpha: str | None) -> float | str | None:
    """Return --alpha as a number, if it is one."""
    try:
        return None if alpha is None else float(alpha)
    except ValueError:
        return alpha
