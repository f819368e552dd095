"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CHECKPOINT_HELP = (
    "Checkpoint: a safetensors file, one of torch.save whatever its name (.pt, .pth, .bin, .ckpt), "
    "a *.index.json, a .zip with a policy in it, or a folder with one of these."
)

# Named here too, as the help needs no torch; a test compares them with what there is.
OF_WEIGHTS = (
    *("portfolio", "layerwise", "beam", "recombination", "descent", "frank-wolfe", "annealing"),
    "learned",
)
SEARCHES = (*OF_WEIGHTS, "ste", "sinkhorn")
WIDTHS = "layerwise 4, beam 4, recombination 16"
STARTS = "descent 1, frank-wolfe 1, annealing 4"
EVIDENCE = ("weights", "activations", "both")
METRICS = ("l2", "normalized", "standardized", "row")
BUNDLED = "bundled"
PLAIN = ("auto", "naive", "average", "slerp")
MENDING = ("norms", "repair", "rescale", "refit", "refit-parents")
ON_DATA = (*MENDING, "distill")

# Titles of groups of options in the help.
SYMMETRIES = "Symmetries"
OUTPUTS = "Outputs"
DATA = "Data"
MERGING = "Merging"
SEARCH = "Search"

Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FACTORY",
        rich_help_panel=SYMMETRIES,
        help="The model, to find its symmetries: package.module:factory or path/models.py:factory "
        "(called without arguments; its code is run), timm:NAME, torchvision:NAME, or a program "
        "exported to a .pt2 file. Needless for a folder of Hugging Face and for a plain chain of "
        "Linear, Conv and norm layers.",
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        rich_help_panel=SYMMETRIES,
        help="Full shape of an example input, batch included: 2,1,28,28 (float32, normal). Other "
        "kinds: 2,16:float64 or, for tokens 0..99, 2,16:int64:100. Repeat it for several inputs; "
        "input_ids=2,16:int64:100 gives one by its name. A .pt2 file and a folder of Hugging Face "
        "bring their own.",
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=SYMMETRIES,
        help="An output of the model that must stay as it is, by its name or number; repeat it for "
        "several. By default all must, also by-products such as hidden states, which keep units "
        "in place.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which state dict of a file that has several: the keys that lead to it, with dots.",
    ),
]
SpecFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        rich_help_panel=SYMMETRIES,
        help="Symmetries written by `inspect --save-spec` or by hand, instead of finding them.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=2**31 - 1, help="Seed of all random numbers."),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="What to compute on.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")
]
Quiet = Annotated[
    bool,
    typer.Option(
        *("--quiet", "-q"), rich_help_panel=OUTPUTS, help="Print warnings and errors only."
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.log",
        rich_help_panel=OUTPUTS,
        help="Append what is done and said, with the time, for instance in a batch job.",
    ),
]
DATA_HELP = (
    "Training data that the networks are run on, in the model: digits, mnist:FOLDER, "
    "cifar10:FOLDER, FILE.npz (x and y), package.module:loader or path/file.py:loader. A part is "
    "held back to compare on."
)
Loss = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=DATA,
        help="What is compared: auto (by the targets), cross_entropy, mse, or "
        "package.module:function of outputs and targets.",
    ),
]
Examples = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        rich_help_panel=DATA,
        help="How many examples are fitted on; by default 1500, and up to 12000 for networks of "
        "few values.",
    ),
]
AlignerFile = Annotated[
    str | None,
    typer.Option(
        "--aligner",
        metavar="FILE",
        rich_help_panel=SEARCH,
        help="Aligner of `gpu-align learn aligner` for networks of this structure: what --search "
        "learned goes by, and from whose answer other searches begin. By default of --search "
        f"learned {BUNDLED}, the one that comes with gpu-align, for the perceptrons of `gpu-align "
        "demo`.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W,W",
        rich_help_panel=MERGING,
        help="How much each network counts in the mean, such as 1,2; by default all alike.",
    ),
]
