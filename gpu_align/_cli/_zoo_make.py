"""What `zoo make` does: the makers of `gpu_align.learn` on images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpu_align._cli._terminal import display, print_line
from gpu_align._errors import InputError
from gpu_align.learn import ClassifierRecipe, SirenRecipe, make_zoo


def make_networks(
    out: Path,
    kind: str,
    networks: int,
    hidden: str,
    steps: int,
    data: str,
    seed: int,
    *,
    quiet: bool,
) -> None:
    """Make a zoo and say so.

    Raises:
        InputError: an option cannot be used; CheckpointError: the zoo cannot be written.
    """
    images, labels = _images(data)
    widths = _widths(hidden)
    recipe: SirenRecipe | ClassifierRecipe
    if kind == "siren":
        views = -(-networks // len(images))
        some = min(networks, len(images))
        images, labels = images[:some], labels[:some]
        recipe = SirenRecipe(views=views, hidden=widths, steps=steps, seed=seed)
    elif kind == "classifier":
        recipe = ClassifierRecipe(networks, hidden=widths, steps=steps, seed=seed)
        images = images.flatten(1)
    else:
        raise InputError(f"--kind: expected siren or classifier, got {kind!r}")
    with display(quiet=quiet) as screen:

        def told(share: float) -> None:
            screen.part("training networks", int(share * networks), networks)

        zoo = make_zoo(out, recipe, images, labels, progress=told)
    if not quiet:
        print_line(f"wrote {len(zoo)} networks: {out}")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise InputError(f"--hidden: expected numbers above 0 such as 16,16, got {text!r}")
    return widths


def _images(data: str) -> tuple[Tensor, Tensor]:
    """Return images with values from 0 to 1, [m, height, width], and labels [m]."""
    if data == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                "--data digits needs scikit-learn; run `pip install gpu-align[demo]`, or name a "
                "FILE.npz"
            ) from error
        found = load_digits()
        return torch.from_numpy(found.images / 16), torch.from_numpy(found.target).long()
    try:
        with np.load(data, allow_pickle=False) as held:
            images, labels = torch.from_numpy(held["x"]), torch.from_numpy(held["y"]).long()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--data {data}: {error}; expected digits, or a FILE.npz with images x [m, height, "
            "width] and labels y"
        ) from error
    return images.float(), labels
