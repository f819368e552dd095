"""Models and example inputs named on the command line."""

import importlib
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._align import Model
from gpu_align._errors import InputError, ModelError, SpecError
from gpu_align._symmetry import PermutationSpec, StateDict, chain_spec

_FORM = "expected --model as package.module:factory, path/models.py:factory or a .pt2 file"
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def load_model(reference: str | None, shapes: Sequence[str] | None, seed: int) -> Model | None:
    """Load the model that `--model` names and make the inputs of `--input-shape`.

    Args:
        reference: "module:factory", "file.py:factory", a `.pt2` file, or None for no model.
        shapes: one text per input, see `example_input`.
        seed: of the inputs, and of whatever the factory draws.

    Raises:
        ModelError: there is no such model, or it cannot be made.
        InputError: a shape cannot be read, or one of the two options is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(example_input(text, generator) for text in shapes or ())
    if reference is None:
        if inputs:
            raise InputError("--input-shape is of no use without --model; add it, or leave both")
        return None
    if reference.endswith(".pt2"):
        program = _load_program(reference)
        return Model(program, inputs or program.example_inputs)
    if not inputs:
        raise InputError(
            f"--model {reference} needs an example input: add --input-shape with the full shape, "
            "for instance 2,1,28,28"
        )
    torch.manual_seed(seed)
    folder = Path.cwd()
    module = _call_factory(reference)
    os.chdir(folder)  # a model's own code may have gone elsewhere, and outputs are relative
    return Model(module, inputs)


def read_spec(path: Path | None, model: Model | None) -> PermutationSpec | None:
    """Return the spec that a file holds, checked on the model if there is one; None without.

    Raises:
        SpecError: it cannot be read, or does not fit; ModelError: the model fails.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read the spec {path}: {error}; write one with `gpu-align inspect --save-spec`"
        ) from error
    try:
        spec = PermutationSpec.from_json(text)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    if model is not None:
        spec.verify(model.module, model.inputs, draws=1)
    return spec


def choose_spec(
    spec_file: Path | None, model: Model | None, state: StateDict | None
) -> PermutationSpec:
    """Return the symmetries: from the file, else found in the model, else those of a chain.

    Raises:
        InputError: nothing to find them in; SpecError, ModelError: it does not work.
    """
    spec = read_spec(spec_file, model)
    if spec is not None:
        return spec
    if model is not None:
        return model.find_spec()
    if state is None:
        raise InputError("nothing to look at: name a checkpoint, --model or --spec")
    return chain_spec(state)


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
            f"dtype (2,16:float64) and the number of tokens (2,16:int64:100); dtypes: "
            f"{', '.join(_DTYPES)}"
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


def _load_program(path: str) -> ExportedProgram:
    if not Path(path).is_file():
        raise ModelError(f"cannot read {path}: no such file; check the path")
    # torch logs the traceback of what it then raises.
    logger = logging.getLogger("torch.export")
    logger.disabled = True
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"cannot read {path} as an exported program: {_first_line(error)}; write it with "
            "torch.export.save and the same version of torch"
        ) from error
    finally:
        logger.disabled = False


def _call_factory(reference: str) -> nn.Module:
    module_name, _, attribute = reference.rpartition(":")
    if not module_name or not attribute:
        raise ModelError(f"{_FORM}, got {reference!r}")
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise ModelError(
                f"{module_name!r} has no {attribute!r}; it has: {', '.join(public[:20]) or 'none'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{reference} is not a function or class that makes a model; {_FORM}")
    model = found if isinstance(found, nn.Module) else _make(reference, found)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected {reference} to return a torch.nn.Module, got {type(model).__name__}; "
            "return the model itself"
        )
    return model


def _make(reference: str, factory: Any) -> object:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{reference} fails when called without arguments: {_where(error)}; write a function "
            "without arguments that returns the model"
        ) from error


def _import(name: str) -> ModuleType:
    file = Path(name)
    is_file = name.endswith(".py")
    if is_file and not file.is_file():
        raise ModelError(f"cannot read {name}: no such file; check the path")
    folder = os.path.abspath(file.parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _import_file(file) if is_file else importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"cannot import {name!r}: {_where(error)}; name a module that can be imported from "
            "here, or a file such as path/models.py"
        ) from error


def _import_file(path: Path) -> ModuleType:
    # A name of its own, so that a file called like an installed package is no danger.
    name = f"_gpu_align_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException) -> str:
    """Say what was raised and in which line of the user's code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_theirs = last.filename != __file__ and not last.filename.startswith("<")
    place = f" ({last.filename}, line {last.lineno})" if is_theirs else ""
    return f"{_first_line(error)}{place}"


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
