"""Old names of attributes, which still work and say what to use."""

import warnings
from typing import Any


class Renamed:
    """A deprecated name in a class: `old = Renamed("new")`."""

    def __init__(self, name: str) -> None:
        self._new = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = f"{owner.__name__}.{name}"

    def __get__(self, instance: object, owner: type) -> Any:
        message = f"{self._old} is deprecated: it is called {self._new} now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(owner if instance is None else instance, self._new)
