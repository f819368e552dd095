"""From a module to its program: traced once, its outputs named."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_structure, tree_unflatten

from gpu_align._errors import ModelError
from gpu_align._symmetry._flat_graph import Program
from gpu_align._symmetry._outputs import passed_over, plain_outputs
from gpu_align._symmetry._running import (
    Arguments,
    as_arguments,
    copied,
    evaluation_mode,
    run,
    same_noise,
)
from gpu_align._symmetry._untouched import untouched
from gpu_align._symmetry._wrappers import uncompiled

_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export")
"""They log what is raised too."""

_CALL = re.compile(r'File "(.+)", line (\d+), in ')


def export(model: nn.Module, example_inputs: object) -> tuple[Program, list[str]]:
    """Trace a module, which is left as it was.

    Args:
        model: it is run in evaluation mode.
        example_inputs: see `as_arguments`.

    Returns:
        The program, which returns a dict of tensors, and the outputs that are passed over.

    Raises:
        ModelError: its forward fails, or it cannot be traced.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with (
        untouched(model, weights=True),
        evaluation_mode(model),
        uncompiled(model),
        same_noise(devices),
        torch.no_grad(),
    ):
        arguments = copied(as_arguments(example_inputs))
        try:
            result, takes_gradients = run(lambda: _call(model, arguments))
        except Exception as error:
            raise ModelError(
                f"the model's forward fails on the example inputs: {type(error).__name__}: {error}"
                "; pass inputs of the shape, dtype and device that the model expects"
            ) from error
        named = plain_outputs(model)
        try:
            with _quiet(), warnings.catch_warnings():
                # Recurrent layers keep a private list of their parameters.
                warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
                trace = _trace_with_gradients if takes_gradients else _trace
                return trace(model, copied(arguments)), passed_over(result)
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace the model: {_described(error)}; "
                "remove control flow that depends on data, or pass a spec instead of a model"
            ) from error
        finally:
            named.remove()


def _call(model: nn.Module, arguments: Arguments) -> object:
    args, kwargs = copied(arguments)
    return model(*args, **kwargs)


def _trace(model: nn.Module, arguments: Arguments) -> Program:
    args, kwargs = arguments
    return Program.of(torch.export.export(model, args, kwargs, strict=False))


def _trace_with_gradients(model: nn.Module, arguments: Arguments) -> Program:
    """Trace a model that takes gradients in its forward, which torch.export cannot do.

    What stands in the graph then are the ops of the gradients too.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    leaves, structure = tree_flatten(arguments)
    names: list[str] = []

    def forward(state: dict[str, Tensor], leaves: list[Any]) -> list[Tensor]:
        args, kwargs = tree_unflatten(leaves, structure)
        outputs = torch.func.functional_call(model, state, args, kwargs)
        names[:] = outputs
        return list(outputs.values())

    with torch.enable_grad():
        traced = make_fx(forward, tracing_mode="fake", _allow_non_fake_inputs=True)(state, leaves)
    for node in traced.graph.find_nodes(op="get_attr"):
        node.meta["val"] = getattr(traced, str(node.target))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places = [node.name for node in traced.graph.find_nodes(op="placeholder")]
    stored = [
        InputSpec(
            InputKind.PARAMETER if name in parameters else InputKind.BUFFER,
            *(TensorArgument(place), name),
            persistent=True,
        )
        for name, place in zip(state, places, strict=False)
    ]
    given = [
        InputSpec(InputKind.USER_INPUT, TensorArgument(place), None)
        for place in places[len(state) :]
    ]
    returned = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name), None) for name in names]
    signature = ExportGraphSignature([*stored, *given], returned)
    return Program(traced, signature, tree_structure(dict.fromkeys(names, 0)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch prints and logs of a trace that fails: graphs of many pages."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


def _described(error: Exception) -> str:
    """Return the first line of what torch says, and the line of the model that it says it of."""
    lines = str(error).splitlines() or [""]
    called = _CALL.findall(str(error))
    place = f" ({called[-1][0]}, line {called[-1][1]})" if called else ""
    return f"{type(error).__name__}: {lines[0].strip()}{place}"
