"""What `align` takes as its source: one network, several in order, or several by name."""

import io
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gpu_align._align._networks import Network

_NETWORKS = (nn.Module, Mapping, str, os.PathLike)


@dataclass(frozen=True)
class Sources:
    """Networks that are aligned to one target.

    Attributes:
        networks: in order; what is no network among them fails in its place.
        keys: of the mapping that they came in; None if they came in none.
        is_single: whether there is one, which was given by itself.
    """

    networks: Sequence[Network]
    keys: Sequence[Hashable] | None = None
    is_single: bool = False

    @classmethod
    def of(cls, source: Any) -> "Sources":
        """Tell one network from several.

        A mapping is a state dict, unless it is empty or has networks and no tensor as its values.
        What only looks like a collection (a tensor, an array, an open file) is one bad network.
        """
        if isinstance(source, Mapping) and not isinstance(source, nn.Module):
            if _has_networks(source):
                return cls(list(source.values()), list(source))
            return cls([source], is_single=True)
        bad = isinstance(source, bytes | bytearray | io.IOBase) or hasattr(source, "__array__")
        if isinstance(source, nn.Module | str | os.PathLike) or bad:
            return cls([source], is_single=True)
        if isinstance(source, Iterable):
            return cls(list(source))
        return cls([source], is_single=True)

    @property
    def names(self) -> list[str | None]:
        """What each is called: by its key, else by its path, else by nothing."""
        if self.keys is not None:
            return [str(key) for key in self.keys]
        return [name_of(network) for network in self.networks]

    def collected(self, found: Sequence[object]) -> Any:
        """Return what was found for each in the form in which the networks came."""
        if self.is_single:
            return found[0]
        return list(found) if self.keys is None else dict(zip(self.keys, found, strict=True))


def name_of(network: Network) -> str | None:
    """Return the path of a network; None if it is not read from a file."""
    return os.fspath(network) if isinstance(network, str | os.PathLike) else None


def _has_networks(source: Mapping[str, object]) -> bool:
    try:
        values = list(source.values())
    except Exception:  # noqa: BLE001  what is wrong with it is said where it is read
        return False
    if any(isinstance(value, Tensor) for value in values):
        return False
    return not values or any(isinstance(value, _NETWORKS) for value in values)
