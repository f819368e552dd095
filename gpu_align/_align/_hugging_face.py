"""Models of Hugging Face transformers, built from the configuration beside their weights.

Nothing is downloaded, and code that lies beside weights is never run.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_align._align._dummy_inputs import dummy_inputs
from gpu_align._align._networks import Model, Network
from gpu_align._errors import ModelError, UnavailableError
from gpu_align._process import MODULES
from gpu_align._symmetry import Kept, StateDict, as_arguments, evaluation_mode, output_tensors

_CONFIG = "config.json"
_LARGEST_CONFIG = 2**24  # bytes

# What models return beside their logits.
_BY_PRODUCT = re.compile(
    r"hidden_state|attention|past_key_values|embed|pool|features|states|mems|_output\b"
)
_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a model raises that does not take its inputs."""


def model_beside(
    networks: Iterable[Network],
    state: StateDict,
    inputs: object = None,
    outputs: Kept | None = None,
) -> Model | None:
    """Build the model that the `config.json` in or beside a checkpoint describes.

    Args:
        networks: the first path among them that has one decides.
        state: the tensors of one of them, whose names are mapped to those of the model.
        inputs: example inputs; by default made for the model.
        outputs: those that must stay as they are. Default: where there are logits, all but states
            that come beside them; else all.

    Returns:
        The model with random weights, in evaluation mode, without a cache; None if there is no
        `config.json` that names a class.

    Raises:
        UnavailableError: transformers is not installed.
        ModelError: transformers cannot build it, or it takes none of the inputs.
    """
    paths = [Path(path) for path in networks if isinstance(path, str | os.PathLike)]
    folders = (path if path.is_dir() else path.parent for path in paths)
    described = ((folder, _architecture(folder)) for folder in folders)
    folder, name = next((pair for pair in described if pair[1]), (Path(), None))
    if name is None:
        return None
    with MODULES, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        with _offline(folder):
            module = _build(folder, name)
            inputs, result = _run(module, name, inputs)
            names = _names_in_module(module, state)
    own = module.state_dict().keys()
    return Model(
        module,
        inputs,
        _wanted(result) if outputs is None else outputs,
        names={inside: name for name, inside in names.items() if inside in own},
        unused={name: state[name] for name, inside in names.items() if inside not in own},
    )


def _architecture(folder: Path) -> str | None:
    file = folder / _CONFIG
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_CONFIG:
            return None
        match json.loads(file.read_text(encoding="utf-8")):
            case {"architectures": [str(name), *_]}:
                return name
    except (OSError, ValueError, RecursionError):
        return None
    return None


@contextmanager
def _offline(folder: Path) -> Iterator[None]:
    """Let transformers look at files of this machine only."""
    try:
        import transformers
        from huggingface_hub import constants
    except ImportError as error:
        raise UnavailableError(
            f"{folder / _CONFIG} describes a model of Hugging Face transformers, which is not "
            "installed; run `pip install 'gpu-align[hf]'`, or name the model (--model, or a "
            "module) or a spec"
        ) from error
    offline, verbosity = constants.HF_HUB_OFFLINE, transformers.logging.get_verbosity()
    constants.HF_HUB_OFFLINE = True
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        transformers.logging.set_verbosity(verbosity)


def _build(folder: Path, name: str) -> nn.Module:
    import transformers

    file = folder / _CONFIG
    made: Any = getattr(transformers, name, None)
    if not isinstance(made, type) or not issubclass(made, transformers.PreTrainedModel):
        raise ModelError(
            f"{file} names the class {name!r}, which transformers {transformers.__version__} does "
            "not have, and code beside weights is never run; name the model (--model, or a "
            "module) or a spec"
        )
    try:
        described: Any = made.config_class
        config = described.from_pretrained(folder, local_files_only=True)
        for part in (config, *_inner(config)):
            _settle(part)
        return made(config).eval()
    except Exception as error:
        raise ModelError(
            f"transformers {transformers.__version__} cannot build {name} from {file}: "
            f"{_first_line(error)}; name the model (--model, or a module) or a spec"
        ) from error


def _inner(config: Any) -> Iterator[Any]:
    """Go through the configurations inside one."""
    import transformers

    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            yield value
            yield from _inner(value)


def _settle(config: Any) -> None:
    """Ask for logits and nothing beside them, whatever the model was last used for."""
    config.return_dict = True
    for name in ("use_cache", "output_hidden_states", "output_attentions"):
        if hasattr(config, name):
            setattr(config, name, False)
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0  # without one, classifiers of sentences refuse a batch


def _names_in_module(module: Any, state: StateDict) -> dict[str, str]:
    """Return name in a checkpoint -> name in the module, as transformers maps them.

    Raises:
        ModelError: it loads several of the checkpoint's tensors as one, or one as several.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    changes = get_model_conversion_mapping(module)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    own = module.state_dict()
    names = {}
    for name in sorted(state):
        inside, converter = (
            (name, None)
            if name in own
            else rename_source_key(name, renamings, converters, module.base_model_prefix, own)
        )
        if converter is not None:
            raise ModelError(
                f"{type(module).__name__} is kept in files in another layout than in memory "
                f"({name!r} is part of {inside!r}); load it with from_pretrained, align the "
                "modules, and write the result with save_pretrained"
            )
        names[name] = inside
    return names


def _run(module: nn.Module, name: str, inputs: object) -> tuple[object, object]:
    """Return inputs that the model takes, and what it returns for them."""
    given = [inputs] if inputs is not None else dummy_inputs(module)
    failure = "there are none for it"
    for number, candidate in enumerate(given):
        args, kwargs = as_arguments(candidate)
        try:
            with torch.no_grad(), evaluation_mode(module):
                return candidate, module(*args, **kwargs)
        except _REFUSALS as error:
            failure = failure if number else _first_line(error)
    raise ModelError(
        f"{name} does not take the example inputs: {failure}; pass its own, by name "
        "(--input-shape input_ids=2,12:int64:100, or a dict as example_inputs)"
    )


def _wanted(result: object) -> list[str] | None:
    names = list(output_tensors(result))
    if not any("logits" in name for name in names):
        return None
    wanted = [name for name in names if "logits" in name or not _BY_PRODUCT.search(name)]
    return wanted if len(wanted) < len(names) else None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
