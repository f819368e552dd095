"""Aligned networks as a data set of torch."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from gpu_align._checkpoint import read_header, read_rows
from gpu_align._errors import InputError
from gpu_align._zoo._pieces import SHARDS
from gpu_align._zoo._result import ZooAlignment
from gpu_align._zoo._shard import MODELS

Transform = Callable[[dict[str, Tensor]], Any]


class AlignedNetworks(Dataset[Any]):
    """The networks of a zoo that was aligned into shards, for a DataLoader.

    An item is a state dict, or a pair of it and the facts that are asked for. Files are read when
    an item is: workers of a DataLoader read for themselves.

    Attributes:
        names: of the networks.
    """

    def __init__(
        self,
        zoo: ZooAlignment | str | os.PathLike[str],
        *,
        family: str | None = None,
        facts: Sequence[str] = (),
        transform: Transform | None = None,
    ) -> None:
        """Look up the networks of one family in the index.

        Args:
            zoo: what `align_zoo` returned, or the folder of its output.
            family: which, if there are several.
            facts: names of what is known of each network, such as "label", that items have beside
                the weights.
            transform: called on every state dict, for instance a random symmetry.

        Raises:
            InputError: there are several families and none is named, or there is no such network or
                fact; CheckpointError: the folder holds no aligned zoo.
        """
        zoo = zoo if isinstance(zoo, ZooAlignment) else ZooAlignment.load(zoo)
        known = list(zoo.data["families"])
        if family is None and len(known) > 1:
            raise InputError(f"expected the name of a family, one of {', '.join(known)}; name one")
        family = known[0] if family is None and known else family
        columns = zoo.rows("name", "family", "status", "shard", "row", "facts")
        rows = zip(*columns.values(), strict=True)
        kept = [row for row in rows if row[1] == family and row[2] == "aligned"]
        if not kept:
            raise InputError(f"expected a family among {', '.join(known)}, got {family!r}")
        self.names = [row[0] for row in kept]
        self._folder, self._transform = Path(zoo.path) / SHARDS, transform
        self._places = [(f"{row[3]:06d}", row[4]) for row in kept]
        self._facts = [_chosen(row[5], facts, row[0]) for row in kept] if facts else None
        if not (self._folder / self._places[0][0] / MODELS).exists():
            raise InputError(
                f"{zoo.path} has its networks in the layout of their source; align them with "
                'layout="shards" for a data set'
            )

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self._places)

    def __getitem__(self, number: int) -> Any:
        """Return one item."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return several items, as a DataLoader asks for them; each file is opened once."""
        found: dict[int, dict[str, Tensor]] = {}
        by_shard: dict[str, list[int]] = {}
        for number in numbers:
            by_shard.setdefault(self._places[number][0], []).append(number)
        for shard, mine in by_shard.items():
            path = self._folder / shard / MODELS
            names = list(read_header(path)[0])
            for number in mine:
                row = self._places[number][1]
                stack = read_rows(path, names, row, row + 1)
                found[number] = {name: tensor[0] for name, tensor in stack.items()}
        return [self._item(number, found[number]) for number in numbers]

    def _item(self, number: int, state: dict[str, Tensor]) -> Any:
        weights = state if self._transform is None else self._transform(state)
        return weights if self._facts is None else (weights, self._facts[number])


def _chosen(text: str | None, facts: Sequence[str], name: str) -> Mapping[str, Any]:
    known = json.loads(text) if text else {}
    missing = [fact for fact in facts if fact not in known]
    if missing:
        raise InputError(
            f"{name} has no fact {missing[0]!r}; expected one of {', '.join(known) or 'none'}"
        )
    return {fact: known[fact] for fact in facts}
