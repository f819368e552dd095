"""Networks, data and losses named on the command line, for what runs networks on data."""

from collections.abc import Sequence
from pathlib import Path

from gpu_align._align import Model
from gpu_align._checkpoint import Checkpoint, load_checkpoint
from gpu_align._errors import InputError
from gpu_align._network import Data, Loss, named_object

NO_MODEL = (
    "--data: networks are run on data in their model, and a checkpoint does not say which it is; "
    "add --model and --input-shape"
)


def load_alike(paths: Sequence[Path], key: str | None) -> list[Checkpoint]:
    """Read checkpoints; tensors of all are called as in the first one.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    first, *others = (load_checkpoint(path, key=key) for path in paths)
    return [first, *(other.named_like(first.tensors) for other in others)]


def read_data(text: str, model: Model, seed: int) -> Data:
    """Read the data of `--data`, with images of the shape that the model takes.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    return model.fitted(Data.of(text, seed=seed))


def read_loss(text: str) -> str | Loss:
    """Return the loss of `--loss`: a name, or a function of the caller's own code.

    Raises:
        InputError: there is no such function.
    """
    if ":" not in text:
        return text
    found = named_object(text, "expected --loss as a name or package.module:function")
    if not callable(found):
        raise InputError(f"--loss {text} is no function; name one of outputs and targets")
    return found


def read_weights(text: str | None) -> list[float] | None:
    """Return the numbers of `--weights`; None without.

    Raises:
        InputError: they are no numbers.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"--weights {text!r}: expected a number for each network with commas between, such "
            "as 1,2"
        ) from error


def check_method(method: str, methods: Sequence[str]) -> None:
    """Check `--method`, before anything is read.

    Raises:
        InputError: it is none of them.
    """
    if method not in methods:
        raise InputError(f"--method: expected one of {', '.join(methods)}, got {method!r}")
