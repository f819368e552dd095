"""From a module to its program: traced once, its outputs named."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import nn
from torch.export import ExportedProgram

from gpu_align._errors import ModelError
from gpu_align._symmetry._outputs import passed_over, plain_outputs
from gpu_align._symmetry._running import as_arguments, copied, evaluation_mode, same_noise
from gpu_align._symmetry._untouched import untouched
from gpu_align._symmetry._wrappers import uncompiled

_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export")
"""They log what is raised too."""

_CALL = re.compile(r'File "(.+)", line (\d+), in ')


def export(model: nn.Module, example_inputs: object) -> tuple[ExportedProgram, list[str]]:
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
        args, kwargs = copied(as_arguments(example_inputs))
        try:
            ignored = passed_over(model(*args, **kwargs))
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
                return torch.export.export(model, args, kwargs, strict=False), ignored
        except Exception as error:
            raise ModelError(
                f"torch.export cannot trace the model: {_described(error)}; "
                "remove control flow that depends on data, or pass a spec instead of a model"
            ) from error
        finally:
            named.remove()


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
