"""Objects in the caller's own code, named as package.module:name or path/file.py:name."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu_align._errors import InputError


def named_object(reference: str, form: str, kind: type[InputError] = InputError) -> Any:
    """Import a module, or run a file, and return what it has under a name.

    Args:
        reference: "package.module:name" or "path/file.py:name"; the name may have dots.
        form: says what is expected, for an error.
        kind: of the errors.

    Raises:
        kind: there is no such object, or the import fails.
    """
    module_name, _, attribute = reference.rpartition(":")
    if not module_name or not attribute:
        raise kind(f"{form}, got {reference!r}")
    found: Any = _import(module_name, kind)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise kind(
                f"{module_name!r} has no {attribute!r}; it has: {', '.join(public[:20]) or 'none'}"
            )
        found = getattr(found, part)
    return found


def call_named(
    reference: str, function: Callable[[], Any], returned: str, kind: type[InputError] = InputError
) -> Any:
    """Call a function of the caller's without arguments.

    Args:
        reference: its name, for an error.
        function: what is called.
        returned: what it is to return, in words.
        kind: of the error.

    Raises:
        kind: it fails.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise kind(
            f"{reference} fails when called without arguments: {where(error)}; write a function "
            f"without arguments that returns {returned}"
        ) from error


def where(error: BaseException) -> str:
    """Say what was raised and in which line of the caller's code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_theirs = last.filename != __file__ and not last.filename.startswith("<")
    place = f" ({last.filename}, line {last.lineno})" if is_theirs else ""
    return f"{first_line(error)}{place}"


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _import(name: str, kind: type[InputError]) -> ModuleType:
    file = Path(name)
    is_file = name.endswith(".py")
    if is_file and not file.is_file():
        raise kind(f"cannot read {name}: no such file; check the path")
    folder = os.path.abspath(file.parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _import_file(file) if is_file else importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise kind(
            f"cannot import {name!r}: {where(error)}; name a module that can be imported from "
            "here, or a file such as path/file.py"
        ) from error


def _import_file(path: Path) -> ModuleType:
    # A name of its own, so that a file called like an installed package is no danger.
    name = f"_gpu_align_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
