"""How a zoo is aligned: what all its workers know."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from torch import Tensor

from gpu_align._align import Model, Settings
from gpu_align._errors import InputError
from gpu_align._problem import Metric
from gpu_align._search import Search
from gpu_align._symmetry import PermutationSpec

Layout = Literal["shards", "same"]
Frame = Literal["medoid", "barycentre"]
MakeModel = Callable[[], Model | None]
"""Makes what functions are compared in; sent to other processes."""


@dataclass(frozen=True)
class ZooSettings:
    """What decides the bytes of the output.

    Attributes:
        search: how to look; None for the portfolio that fits the problem.
        metric: what the distance is made of.
        device: "auto", "cpu" or "cuda".
        seed: of the search and of the sample.
        layout: of the output: "shards" or "same".
        checkpoint: of a training run, on which its permutation is found: "last", "first" or a
            name.
        sample: models from which a medoid or a barycentre is made.
        shard: most models of a shard; None to choose by their number and size.
        stacked: whether safetensors files are stacks; None to tell by their shapes.
        runs: whether the checkpoints in each folder are of one training run.
    """

    search: Search | None
    metric: str | Metric = "l2"
    device: str = "auto"
    seed: int = 0
    layout: Layout = "shards"
    checkpoint: str = "last"
    sample: int = 256
    shard: int | None = None
    stacked: bool | None = None
    runs: bool = False

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise InputError(
                f"expected a layout among {', '.join(get_args(Layout))}, got {self.layout!r}"
            )
        for name in ("sample", "shard"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= 1) and not (name == "shard" and value is None):
                raise InputError(f"expected {name} as a number above 0, got {value!r}")

    def of_align(self) -> Settings:
        """Return them as those of one call of `align`, for the device that a worker has."""
        return Settings.of(self.search, self.metric, self.device, self.seed, None, None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: those of two runs are equal if the outputs are to be."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = (str, int, float, bool, type(None))
        return {name: v if isinstance(v, plain) else repr(v) for name, v in values.items()}


@dataclass(frozen=True, eq=False)
class Family:
    """Models of one architecture.

    Attributes:
        name: of the family.
        spec: their symmetries.
        target: the network that they are aligned to, with the names of the spec.
        has_model: whether functions are compared in the model.
    """

    name: str
    spec: PermutationSpec
    target: Mapping[str, Tensor]
    has_model: bool


@dataclass(frozen=True, eq=False)
class Context:
    """What a worker needs besides the shard that it is to do.

    Attributes:
        out: the folder of the output.
        families: by their names.
        settings: how.
        make_model: what functions are compared in; None for no comparison.
    """

    out: str | os.PathLike[str]
    families: Mapping[str, Family]
    settings: ZooSettings
    make_model: MakeModel | None

    @cached_property
    def model(self) -> Model | None:
        """What functions are compared in, made once in each process."""
        return None if self.make_model is None else self.make_model()
