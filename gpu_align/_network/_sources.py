"""Data named by a text."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gpu_align._errors import InputError
from gpu_align._network._batches import tensor_of
from gpu_align._network._cifar import read_cifar10
from gpu_align._network._digits import load_digits
from gpu_align._network._examples import Examples
from gpu_align._network._idx import read_idx_folder
from gpu_align._network._own_code import call_named, first_line, named_object

FORMS = (
    "digits, mnist:FOLDER, cifar10:FOLDER, FILE.npz, package.module:loader or path/file.py:loader"
)

_TEST = "x_test"


@dataclass(frozen=True)
class Parts:
    """Training data, and test data if the source has some."""

    train: Examples
    test: Examples | None = None


def read_source(text: str) -> Any:
    """Read the data that a text names.

    Args:
        text: "digits" (of scikit-learn, in [0, 1]); "mnist:FOLDER" with the four idx files of MNIST
            or Fashion-MNIST, "cifar10:FOLDER" with CIFAR-10's batches, both normalised by the
            usual means and deviations; "FILE.npz", see `_read_npz`; "package.module:loader" or
            "path/file.py:loader": an iterable of batches, or a function of no arguments that
            returns what `Data.of` takes.

    Returns:
        Parts; of a loader what it gives.

    Raises:
        InputError: there are no such data, or they cannot be read.
    """
    kind, _, rest = text.partition(":")
    if text == "digits":
        digits = load_digits()
        return Parts(
            Examples.of(digits.train_images, digits.train_labels),
            Examples.of(digits.test_images, digits.test_labels),
        )
    if kind in ("mnist", "cifar10"):
        if not rest:
            raise InputError(f"{text!r} names no folder; write {kind}:FOLDER")
        return _parts(*(read_idx_folder if kind == "mnist" else read_cifar10)(Path(rest)))
    if text.endswith(".npz"):
        return _read_npz(Path(text))
    # Before a folder that is only misspelt is taken for a module.
    if ":" not in text:
        raise InputError(f"expected data as {FORMS}, got {text!r}")
    return _from_loader(text)


def _parts(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor] | None) -> Parts:
    return Parts(Examples.of(*train), None if test is None else Examples.of(*test))


def _from_loader(reference: str) -> Any:
    with contextlib.chdir("."):  # their code may go elsewhere, and outputs are relative
        found = named_object(reference, f"expected data as {FORMS}")
        if callable(found) and (isinstance(found, type) or not isinstance(found, Iterable)):
            found = call_named(reference, found, "pairs (x, y)")
    if isinstance(found, str):
        raise InputError(f"{reference} gives a text; return batches, or a pair (x, y) of tensors")
    return found


def _read_npz(path: Path) -> Parts:
    """Read arrays from an .npz file.

    It holds x, [n, ...] as the model takes it, and y, [n, ...]: integer classes, next tokens or
    numbers; and x_test and y_test if there is test data. Several inputs are x_NAME (x_test_NAME),
    keyword arguments of these names.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: tensor_of(file[name]) for name in file.files}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        raise InputError(
            f"cannot read {path} as an .npz file: {first_line(error)}; write it with numpy.savez "
            "from arrays of numbers"
        ) from error
    train, test = _Names("x", "y"), _Names(_TEST, "y_test")
    of_test = {name for name in arrays if name == _TEST or name.startswith(f"{_TEST}_")}
    known = {name for name in arrays if name == "x" or name.startswith("x_")} | {"y", "y_test"}
    unknown = sorted(arrays.keys() - known)
    if unknown:
        raise InputError(
            f"{path} has {', '.join(unknown)}; expected x and y, x_NAME for several inputs, and "
            "x_test and y_test"
        )
    rest = {name: value for name, value in arrays.items() if name not in of_test}
    if "y_test" in arrays and not of_test:
        raise InputError(f"{path} has y_test but no x_test; add it, or leave both")
    return Parts(
        train.examples(rest, path),
        test.examples(arrays, path) if of_test else None,
    )


@dataclass(frozen=True)
class _Names:
    """What inputs and targets are called in a file."""

    inputs: str
    targets: str

    def examples(self, arrays: dict[str, Tensor], path: Path) -> Examples:
        """Return the examples of arrays with these names."""
        prefix = f"{self.inputs}_"
        several = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        one = arrays.get(self.inputs)
        if (one is None) == (not several):
            raise InputError(
                f"{path} has {', '.join(sorted(arrays)) or 'no arrays'}; expected one array "
                f"{self.inputs}, or several {prefix}NAME"
            )
        try:
            return Examples.of(several if one is None else one, arrays.get(self.targets))
        except InputError as error:
            raise InputError(f"{path}, {self.inputs} and {self.targets}: {error}") from error
