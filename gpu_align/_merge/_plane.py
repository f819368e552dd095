"""The plane through three networks, and the losses on it.

Source: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs (NeurIPS
2018), appendix A.1.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from gpu_align._errors import InputError
from gpu_align._symmetry import StateDict

NAMES = ("A", "B aligned", "B")

_MARGIN = 0.25
"""What is shown around the three networks, as a share of their extent."""

_FLAT = 1e-6
"""Below this share of its width, the triangle of the networks is a line."""


@dataclass(frozen=True)
class LossPlane:
    """Losses on a grid in the plane through A, B as given, and B aligned.

    Distances in the plane are those of the weights. A lies at (0, 0), B aligned on the x axis.

    Attributes:
        x, y: coordinates of the columns and of the rows.
        losses: of each row, those of its columns.
        accuracies: likewise; empty without classes.
        places: name -> (x, y), of "A", "B" and "B aligned".
        reestimated: whether each network's batch norms have the statistics of the data.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    accuracies: tuple[tuple[float, ...], ...]
    places: Mapping[str, tuple[float, float]]
    reestimated: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; what is not finite becomes null."""
        return {
            "x": list(self.x),
            "y": list(self.y),
            "losses": [[v if math.isfinite(v) else None for v in row] for row in self.losses],
            "accuracies": [list(row) for row in self.accuracies],
            "places": {name: list(place) for name, place in self.places.items()},
            "reestimated": self.reestimated,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` returns.

        Raises:
            KeyError: an entry is missing.
        """
        return cls(
            x=tuple(data["x"]),
            y=tuple(data["y"]),
            losses=tuple(
                tuple(math.inf if v is None else v for v in row) for row in data["losses"]
            ),
            accuracies=tuple(map(tuple, data["accuracies"])),
            places={name: (x, y) for name, (x, y) in data["places"].items()},
            reestimated=data["reestimated"],
        )


@dataclass(frozen=True)
class Axes:
    """Orthogonal axes of the plane through three networks.

    Attributes:
        along: distance of the first and the second.
        foot, height: place of the third: along the line through these, and above it.
    """

    along: float
    foot: float
    height: float

    @classmethod
    def of(cls, states: Sequence[StateDict], names: Collection[str]) -> Self | None:
        """Return the axes of three state dicts; None if these lie on one line.

        Args:
            states: the first is the origin, the second lies on the x axis.
            names: of the weights, whose distances are measured.
        """
        first, second, third = states
        squares = torch.zeros(3, dtype=torch.float64, device="cpu")
        for name in names:
            u, d = ((s[name].double() - first[name].double()).flatten() for s in (second, third))
            squares += torch.stack([u @ u, u @ d, d @ d]).cpu()
        uu, ud, dd = squares.tolist()
        if uu == 0 or dd * uu - ud**2 <= _FLAT**2 * max(uu, dd) ** 2:
            return None
        return cls(math.sqrt(uu), ud / math.sqrt(uu), math.sqrt(dd - ud**2 / uu))

    def weights(self, x: float, y: float) -> tuple[float, float, float]:
        """Return the weights of the three networks at a place; they sum to 1."""
        third = y / self.height
        second = (x - third * self.foot) / self.along
        return 1 - second - third, second, third

    def grid(self, count: int) -> tuple[list[float], list[float]]:
        """Return the coordinates of columns and rows around the three networks.

        Raises:
            InputError: `count` is below 2.
        """
        if count < 2:
            raise InputError(f"expected a plane of at least 2 points a side, got {count}")
        xs, ys = (0.0, self.along, self.foot), (0.0, self.height)
        margin = _MARGIN * max(max(xs) - min(xs), max(ys))
        return _spaced(min(xs) - margin, max(xs) + margin, count), _spaced(
            min(ys) - margin, max(ys) + margin, count
        )

    @property
    def places(self) -> dict[str, tuple[float, float]]:
        """Return where the three networks lie."""
        spots = ((0.0, 0.0), (self.along, 0.0), (self.foot, self.height))
        return dict(zip(NAMES, spots, strict=True))


def _spaced(low: float, high: float, count: int) -> list[float]:
    return [low + (high - low) * number / (count - 1) for number in range(count)]
