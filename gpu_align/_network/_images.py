"""Images brought to the shape that a model takes."""

from collections.abc import Sequence
from math import prod

from torch import Tensor
from torch.nn.functional import avg_pool2d

from gpu_align._errors import InputError
from gpu_align._network._examples import Batch, Examples


def fitted(examples: Examples, shape: Sequence[int]) -> Examples:
    """Return examples whose images have the shape that a model takes.

    They are flattened or given axes of size 1, axes of channels are moved from first to last or
    back, and larger images are averaged over equal patches. Inputs that are no single tensor of
    floating-point numbers (tokens, several inputs) are left as they are, and so are examples of
    several shapes where some are as the model takes them.

    Args:
        examples: with images [n, *given].
        shape: of one image as the model takes it.

    Raises:
        InputError: neither does.
    """
    wanted = tuple(shape)
    if fits(examples, wanted):
        return examples
    return Examples(tuple(_fitted_lot(lot, wanted) for lot in examples.lots))


def fits(examples: Examples, shape: Sequence[int]) -> bool:
    """Say whether some examples have the shape that a model takes."""
    inputs = [lot.inputs for lot in examples.lots]
    return any(isinstance(x, Tensor) and x.shape[1:] == tuple(shape) for x in inputs)


def _fitted_lot(lot: Batch, wanted: tuple[int, ...]) -> Batch:
    images = lot.inputs
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return lot
    given = tuple(images.shape[1:])
    if _same_entries(given, wanted):
        return Batch(images.reshape(len(images), *wanted), lot.targets)
    if len(given) == 3 and wanted == (*given[1:], given[0]):
        return Batch(images.permute(0, 2, 3, 1), lot.targets)
    if len(given) == 3 and wanted == (given[2], *given[:2]):
        return Batch(images.permute(0, 3, 1, 2), lot.targets)
    if len(given) == len(wanted) == 3 and _is_multiple(given, wanted):
        patch = (given[1] // wanted[1], given[2] // wanted[2])
        return Batch(avg_pool2d(images, patch), lot.targets)
    raise InputError(
        f"the data have examples of the shape {_written(given)}, the model takes "
        f"{_written(wanted)}; give data of that shape, or of a multiple of its height and width"
    )


def _same_entries(given: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a reshape keeps the order of the axes."""
    if prod(given) != prod(wanted):
        return False
    long = [[size for size in sizes if size > 1] for sizes in (given, wanted)]
    return long[0] == long[1] or min(map(len, long)) <= 1


def _is_multiple(given: Sequence[int], wanted: Sequence[int]) -> bool:
    whole = all(w > 0 and g % w == 0 for g, w in zip(given[1:], wanted[1:], strict=True))
    return given[0] == wanted[0] and whole


def _written(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
