"""Example inputs named on the command line."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from gpu_align._errors import InputError

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)")


def example_inputs(texts: Sequence[str], seed: int) -> object:
    """Make the inputs of `--input-shape`: a text NAME=SHAPE is an argument of that name.

    Args:
        texts: one per input, see `example_input`.
        seed: of the values.

    Returns:
        A tuple of positional arguments, with a dict of keyword arguments if there are some; None
        without texts.

    Raises:
        InputError: a text has another form, or a name comes twice.
    """
    generator = torch.Generator().manual_seed(seed)
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    for text in texts:
        keyword = _KEYWORD.fullmatch(text)
        if keyword is None:
            positional.append(example_input(text, generator))
        elif keyword[1] in named:
            raise InputError(f"--input-shape {text!r}: there are two inputs {keyword[1]!r}")
        else:
            named[keyword[1]] = example_input(keyword[2], generator)
    if named:
        return tuple(positional), named
    return tuple(positional) or None


def example_input(text: str, generator: torch.Generator) -> Tensor:
    """Make a random tensor from SHAPE, SHAPE:DTYPE or SHAPE:DTYPE:HIGH.

    Floats are normal, integers are drawn from 0 to HIGH - 1, bool from both.

    Raises:
        InputError: the text has another form.
    """
    shape_text, _, kind = text.partition(":")
    name, _, high_text = kind.partition(":")
    sizes = shape_text.split(",")
    dtype = _DTYPES.get(name or "float32")
    if dtype is None or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(
            f"--input-shape {text!r}: expected the full shape such as 2,1,28,28, if need be with a "
            "dtype (2,16:float64) and the number of tokens (2,16:int64:100), or with the name of "
            f"the argument before it (input_ids=2,16:int64:100); dtypes: {', '.join(_DTYPES)}"
        )
    shape = [int(size) for size in sizes]
    if dtype.is_floating_point:
        if high_text:
            raise InputError(f"--input-shape {text!r}: only integers have a number of tokens")
        return torch.randn(shape, generator=generator, device="cpu").to(dtype)
    high = "2" if dtype == torch.bool and not high_text else high_text
    if not high.isdecimal() or int(high) < 1:
        raise InputError(
            f"--input-shape {text!r}: integers need the number of tokens, a "
            f"whole number from 1, got {high_text or 'none'!r}; write for instance "
            f"{shape_text}:{name}:100"
        )
    return torch.randint(int(high), shape, generator=generator, device="cpu").to(dtype)
