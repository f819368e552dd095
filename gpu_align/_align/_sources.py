"""What `align` takes as its source: one network, several in order, or several by name."""

import io
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gpu_align._align._networks import Network, state_of
from gpu_align._errors import InputError
from gpu_align._symmetry import StateDict, stack_size, unstacked

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
    def of(cls, source: Any, target: Any) -> "Sources":
        """Tell one network from several.

        A state dict whose tensors have one axis more than the target's is a stack of networks.

        A mapping is a state dict, unless it is empty or has networks and no tensor as its values.
        What only looks like a collection (a tensor, an array, an open file) is one bad network.
        """
        if isinstance(source, Mapping) and not isinstance(source, nn.Module):
            if _has_networks(source):
                return cls(list(source.values()), list(source))
            parts = _parts(source, target)
            return cls([source], is_single=True) if parts is None else cls(parts)
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


def _parts(source: Mapping[str, Any], target: Any) -> list[dict[str, Tensor]] | None:
    """Return the networks of a stack; None if the source is none."""
    state, other = _state(source), _state(target)
    if state is None or other is None:
        return None
    count = stack_size(state, {name: tensor.shape for name, tensor in other.items()})
    return None if count is None else unstacked(state, count)


def _state(network: Any) -> StateDict | None:
    """Return the tensors of a network that is at hand; None if it has to be read, or cannot be."""
    if isinstance(network, str | os.PathLike):
        return None
    try:
        return state_of(network)
    except InputError:
        return None
