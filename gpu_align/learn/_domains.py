"""Images of a shifted domain."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_align._errors import InputError


def shifted(images: Tensor, shift: str, amount: float | None, seed: int) -> Tensor:
    """Return images of another domain.

    Args:
        images: [m, channels, height, width] or [m, height, width].
        shift: one of `SHIFTS`.
        amount: of it; None for the usual one.
        seed: of what is drawn.

    Raises:
        InputError: there is no such shift, its amount is below 0 or not finite, or they are no
            images.
    """
    if shift not in SHIFTS:
        raise InputError(f"expected a shift among {', '.join(SHIFTS)}, got {shift!r}")
    if images.ndim not in (3, 4):
        raise InputError(
            f"expected images [m, channels, height, width] or [m, height, width], got "
            f"{list(images.shape)}"
        )
    make, usual = SHIFTS[shift]
    amount = usual if amount is None else amount
    if not math.isfinite(amount) or (amount < 0 and make is not _rotate):
        raise InputError(f"expected an amount of {shift} from 0 on, got {amount:g}")
    whole = images if images.ndim == 4 else images[:, None]
    return make(whole, amount, seed).reshape(images.shape)


def _rotate(images: Tensor, degrees: float, seed: int) -> Tensor:
    """Turn images around their middle; what comes from outside has their darkest value."""
    angle, low = math.radians(degrees), images.amin()
    turn = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    matrix = torch.tensor(turn, device="cpu").to(images).expand(len(images), 2, 3)
    places = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images - low, places, align_corners=False) + low


def _blur(images: Tensor, pixels: float, seed: int) -> Tensor:
    """Blur images by a Gaussian of this standard deviation."""
    if pixels == 0:
        return images
    reach = max(1, math.ceil(3 * pixels))
    places = torch.arange(-reach, reach + 1, device="cpu").to(images)
    row = torch.exp(-0.5 * (places / pixels) ** 2)
    kernel = torch.outer(row, row)[None, None] / row.sum() ** 2
    single = images.flatten(0, 1)[:, None]
    padded = F.pad(single, (reach,) * 4, mode="replicate")
    return F.conv2d(padded, kernel).reshape(images.shape)


def _noise(images: Tensor, deviation: float, seed: int) -> Tensor:
    """Add Gaussian noise to images, as a share of their range."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(images.shape, generator=generator, device="cpu").to(images)
    return images + deviation * (images.amax() - images.amin()) * drawn


SHIFTS: dict[str, tuple[Callable[[Tensor, float, int], Tensor], float]] = {
    "rotate": (_rotate, 40.0),
    "blur": (_blur, 1.0),
    "noise": (_noise, 0.3),
}
"""Name -> what makes it, and the usual amount: degrees, pixels, a share of the range."""
