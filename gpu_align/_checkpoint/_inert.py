"""Pickles with classes that are not loaded: read as placeholders, written back as they came.

Unlike the reader of `torch.load(weights_only=True)`, this one gives every name that it does not
know a placeholder. Nothing is imported or looked up by a name from the file, and nothing is called
but the few callables of `_KNOWN`, which make tensors and plain values.

This module takes the place of `pickle` in `torch.load` and `torch.save`.

Reference:
    The opcodes and their meaning: CPython, Lib/pickletools.py.
"""

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes, as old protocols write them."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("_codecs", "encode"): _encoded,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch", "Tensor"): Tensor,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex)
    },
    **{("torch", name): value for name, value in vars(torch).items() if type(value) is torch.dtype},
}
_CALLABLES = frozenset(
    id(value) for value in _KNOWN.values() if callable(value) and value is not Tensor
)


@dataclass(frozen=True)
class Name:
    """A class or function that is only known by its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Foreign(dict[Any, Any]):
    """An object of a class that is not loaded: how it is made, and what it holds.

    It is a dict of the items that the object has, if it is a kind of dict.

    Attributes:
        made_by: what would be called.
        arguments: with what.
        opcode: `pickle.REDUCE` or `pickle.NEWOBJ`: how it would be called.
        steps: what would then be done to it: opcode -> `pickle.APPEND` an item, or
            `pickle.BUILD` from a state.
    """

    made_by: Any
    arguments: Any
    opcode: bytes
    steps: list[tuple[bytes, Any]]

    # Unlike a dict it is the key of others, if the object is.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    @classmethod
    def made(cls, made_by: Any, arguments: Any, opcode: bytes) -> Self:
        """Return the placeholder of an object that is made by a call."""
        self = cls()
        self.made_by, self.arguments, self.opcode = made_by, arguments, opcode
        self.steps = []
        return self

    def __copy__(self) -> Self:
        result = self.made(self.made_by, self.arguments, self.opcode)
        result.steps = self.steps
        result.update(self)
        return result

    def __str__(self) -> str:
        # Old ways to make an object name its class first.
        arguments = self.arguments if isinstance(self.arguments, tuple) else ()
        general = str(self.made_by).startswith(("copyreg.", "copy_reg."))
        return str(arguments[0] if general and arguments else self.made_by)


def parts(item: object) -> Iterator[Any]:
    """Go through what a container holds, placeholders included."""
    if isinstance(item, dict):
        yield from item
        yield from item.values()
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item
    if isinstance(item, Foreign):
        yield from (item.made_by, item.arguments)
        yield from (value for _, value in item.steps)


def foreign_names(root: object) -> tuple[str, ...]:
    """List the classes and functions in an object that were not loaded, in order of their names."""
    found: set[str] = set()
    pending, seen = [root], set()
    while pending:
        item = pending.pop()
        if isinstance(item, Foreign | Name):
            found.add(str(item))
        if id(item) not in seen:
            seen.add(id(item))
            pending.extend(parts(item))
    return tuple(sorted(found))


def load(file: Any, **options: Any) -> Any:
    """Read one pickle, as `pickle.load` does."""
    return Unpickler(file, **options).load()


# Those written in Python, whose opcodes can be given another meaning.
_PythonUnpickler: Any = pickle._Unpickler
_PythonPickler: Any = pickle._Pickler


class Unpickler(_PythonUnpickler):
    """Reads a pickle without loading a class; see the module."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return what is known by a name, else a placeholder."""
        if "\n" in module or "\n" in name:
            raise pickle.UnpicklingError("a name with a line break")
        known = _KNOWN.get((module, name))
        return Name(module, name) if known is None else known

    def _persistent(self) -> None:
        # Old releases keep the source code of modules beside their class, and torch compares it.
        place = self.stack.pop()
        is_class = type(place) is tuple and len(place) > 1 and place[0] in ("module", b"module")
        self.stack.append(place[1] if is_class else self.persistent_load(place))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def _new(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _placeholder(self.stack[-1], arguments, pickle.NEWOBJ)

    def _new_by_name(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        everything = (self.stack[-1], arguments, keywords)
        maker = Name("copyreg", "__newobj_ex__")
        self.stack[-1] = Foreign.made(maker, everything, pickle.REDUCE)

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Foreign:
            target.steps.append((pickle.BUILD, state))
        elif type(target) is OrderedDict and type(state) is dict:
            target.__dict__.update(state)
        else:
            raise _unexpected("a state", target)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is Foreign:
            target.steps.extend((pickle.APPEND, item) for item in items)
        else:
            raise _unexpected("an item", target)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Counter, Foreign):
            raise _unexpected("an entry", target)
        target.update(zip(items[::2], items[1::2], strict=True))

    def _add_items(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise _unexpected("an element", self.stack[-1])
        self.stack[-1].update(items)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an opcode that no torch file has")


Unpickler.dispatch |= {
    pickle.BINPERSID[0]: Unpickler._persistent,
    pickle.REDUCE[0]: Unpickler._reduce,
    pickle.NEWOBJ[0]: Unpickler._new,
    pickle.NEWOBJ_EX[0]: Unpickler._new_by_name,
    pickle.BUILD[0]: Unpickler._build,
    pickle.APPEND[0]: Unpickler._append,
    pickle.APPENDS[0]: Unpickler._appends,
    pickle.SETITEM[0]: Unpickler._set_item,
    pickle.SETITEMS[0]: Unpickler._set_items,
    pickle.ADDITEMS[0]: Unpickler._add_items,
    # These call classes in ways of their own, or look into tables of the process.
    **dict.fromkeys(
        (
            *(pickle.INST[0], pickle.OBJ[0], pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]),
            *(pickle.PERSID[0], pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0]),
        ),
        Unpickler._refuse,
    ),
}


def _called(function: Any, arguments: Any) -> Any:
    if id(function) not in _CALLABLES:
        return _placeholder(function, arguments, pickle.REDUCE)
    if type(arguments) is not tuple:
        raise _unexpected("arguments", arguments)
    if any(isinstance(argument, Foreign | Name) for argument in arguments):
        return Foreign.made(function, arguments, pickle.REDUCE)
    return function(*arguments)


def _placeholder(maker: Any, arguments: Any, opcode: bytes) -> Foreign:
    if not isinstance(maker, Name | Foreign) and id(maker) not in _CALLABLES:
        raise _unexpected("a call", maker)
    return Foreign.made(maker, arguments, opcode)


def _unexpected(what: str, target: object) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"{what} for an object of type {type(target).__name__}")


class Pickler(_PythonPickler):
    """Writes placeholders as what they stand for."""

    dispatch: ClassVar[dict[type, Callable[[Any, Any], None]]] = dict(_PythonPickler.dispatch)

    def _save_name(self, item: Name) -> None:
        self.write(pickle.GLOBAL + f"{item.module}\n{item.name}\n".encode())
        self.memoize(item)

    def _save_foreign(self, item: Foreign) -> None:
        self.save(item.made_by)
        self.save(item.arguments)
        self.write(item.opcode)
        self.memoize(item)
        steps = [(opcode, value) for opcode, value in item.steps if opcode == pickle.APPEND]
        for opcode, value in steps:
            self.save(value)
            self.write(opcode)
        for key, value in item.items():
            self.save(key)
            self.save(value)
            self.write(pickle.SETITEM)
        for opcode, value in item.steps:
            if opcode == pickle.BUILD:
                self.save(value)
                self.write(opcode)


Pickler.dispatch |= {Name: Pickler._save_name, Foreign: Pickler._save_foreign}
