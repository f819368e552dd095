"""Models and example inputs named on the command line."""

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from gpu_align._align import Model, model_beside
from gpu_align._cli._example_inputs import example_inputs
from gpu_align._errors import InputError, ModelError, SpecError, UnavailableError
from gpu_align._network import call_named, first_line, named_object
from gpu_align._symmetry import PermutationSpec, StateDict, chain_spec

_FORM = (
    "expected --model as package.module:factory, path/models.py:factory, timm:NAME, "
    "torchvision:NAME or a .pt2 file"
)
_ZOOS = {"timm": "timm", "torchvision": "torchvision.models"}


def load_model(
    reference: str | None,
    shapes: Sequence[str] | None,
    seed: int,
    outputs: Sequence[str] | None = None,
    *,
    beside: Sequence[Path] = (),
    state: StateDict | None = None,
) -> Model | None:
    """Load the model that `--model` names and make the inputs of `--input-shape`.

    Args:
        reference: "module:factory", "file.py:factory", "timm:NAME", "torchvision:NAME" or a `.pt2`
            file; None for the model that a `config.json` beside a checkpoint names, or none.
        shapes: one text per input, see `example_inputs`.
        seed: of the inputs, and of whatever the factory draws.
        outputs: those that must stay as they are; None for all.
        beside: paths of checkpoints.
        state: the tensors of one of these.

    Raises:
        ModelError: there is no such model, or it cannot be made.
        InputError: a shape cannot be read, or one of the two options is missing.
    """
    inputs, outputs = example_inputs(shapes or (), seed), outputs or None
    if reference is None:
        model = model_beside(beside, state or {}, inputs, outputs)
        if model is None and (inputs is not None or outputs):
            option = "--output" if inputs is None else "--input-shape"
            raise InputError(f"{option} is of no use without --model; add it, or leave both")
        return model
    if reference.endswith(".pt2"):
        program = _load_program(reference)
        return Model(program, program.example_inputs if inputs is None else inputs, outputs)
    if inputs is None:
        raise InputError(
            f"--model {reference} needs an example input: add --input-shape with the full shape, "
            "for instance 2,1,28,28"
        )
    torch.manual_seed(seed)
    folder = Path.cwd()
    module = _call_factory(reference)
    os.chdir(folder)  # a model's own code may have gone elsewhere, and outputs are relative
    return Model(module, inputs, outputs)


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
        spec.verify(model.module, model.inputs, draws=1, outputs=model.outputs)
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
            f"cannot read {path} as an exported program: {first_line(error)}; write it with "
            "torch.export.save and the same version of torch"
        ) from error
    finally:
        logger.disabled = False


def _call_factory(reference: str) -> nn.Module:
    zoo, _, name = reference.rpartition(":")
    if zoo in _ZOOS and name:
        return _from_zoo(zoo, name)
    found = named_object(reference, _FORM, ModelError)
    if not callable(found):
        raise ModelError(f"{reference} is not a function or class that makes a model; {_FORM}")
    if isinstance(found, nn.Module):
        return found
    model = call_named(reference, found, "the model", ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected {reference} to return a torch.nn.Module, got {type(model).__name__}; "
            "return the model itself"
        )
    return model


def _from_zoo(zoo: str, name: str) -> nn.Module:
    """Make a model of a library that knows its models by name, with random weights."""
    try:
        package = importlib.import_module(_ZOOS[zoo])
    except ImportError as error:
        raise UnavailableError(
            f"--model {zoo}:{name} needs {zoo}, which cannot be imported ({first_line(error)}); "
            f"run `pip install {zoo}`"
        ) from error
    try:
        if zoo == "timm":
            return package.create_model(name, pretrained=False)
        return package.get_model(name, weights=None)
    except Exception as error:
        raise ModelError(
            f"{zoo} cannot make a model {name!r}: {first_line(error)}; see `{_ZOOS[zoo]}."
            "list_models()`, or write a function that makes it"
        ) from error
