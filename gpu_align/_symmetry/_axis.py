"""How the units of groups are laid out along one axis of a tensor.

An axis is a sequence of *segments* (more than one after a concatenation); a segment is a product
of *factors*, slowest first; a factor is either a group of interchangeable units or a fixed extent.
Where a concatenation is repeated, a factor is an axis itself.

    Linear weight, output axis          [[g]]
    Linear after flattening a g x 9 map [[g, 9]]
    stacked gates of a recurrent cell   [[4, g]]
    concatenation of two layers         [[g], [h]]
    heads, and dimensions inside each   [[heads, dims]]
    two of them fixed in each head      [[heads, [[2], [dims]]]]
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gpu_align._errors import SpecError

_DEEPEST = 8
"""Most concatenations inside each other that are read."""


@dataclass(frozen=True)
class Fixed:
    """Places along an axis that stay where they are.

    Attributes:
        size: number of them.
    """

    size: int


@dataclass(frozen=True)
class Units:
    """Places along an axis that are the units of a group.

    Attributes:
        size: number of them; of a group with a parent, those inside one unit of the parent.
        group: name of the group.
        power: the entries of a unit are multiplied by this power of its sign or scale: 1 where
            the unit is made, -1 where it is read, 0 where it is not seen.
    """

    size: int
    group: str
    power: int = 0


Factor = Fixed | Units
_MOST_PLACES = 2**63
Segment = tuple["Fixed | Units | Axis", ...]


@dataclass(frozen=True)
class Piece:
    """The places along an axis that are a product of factors only.

    Attributes:
        start: the first of them.
        factors: slowest first.
        strides: how far the next place of each factor is.
    """

    start: int = 0
    factors: tuple[Factor, ...] = ()
    strides: tuple[int, ...] = ()

    def inside(self, outer: "Piece", stride: int) -> "Piece":
        """Return the product with another piece, between whose places lie `stride` others."""
        return Piece(
            outer.start * stride + self.start,
            outer.factors + self.factors,
            tuple(step * stride for step in outer.strides) + self.strides,
        )


@dataclass(frozen=True)
class Axis:
    """The layout of one tensor axis: segments one after another, each a product of factors."""

    segments: tuple[Segment, ...]

    @classmethod
    def fixed(cls, size: int) -> "Axis":
        """Return an axis whose places stay where they are."""
        return cls(((Fixed(size),),))

    @classmethod
    def of_group(cls, group: str, size: int) -> "Axis":
        """Return an axis that is exactly the units of `group`."""
        return cls(((Units(size, group),),))

    @property
    def size(self) -> int:
        """Number of entries along the axis."""
        return sum(segment_size(segment) for segment in self.segments)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups on this axis, in order, without repetition."""
        return tuple(dict.fromkeys(f.group for f in self.factors() if isinstance(f, Units)))

    def factors(self) -> Iterator[Factor]:
        """Yield the factors of all segments in order, those of inner axes too."""
        for segment in self.segments:
            for part in segment:
                yield from (part,) if isinstance(part, Factor) else part.factors()

    def replaced(self, change: Callable[[Factor], Factor]) -> "Axis":
        """Return the axis with every factor changed, in the order of `factors`."""
        return Axis(
            tuple(
                tuple(
                    change(part) if isinstance(part, Factor) else part.replaced(change)
                    for part in segment
                )
                for segment in self.segments
            )
        )

    def pieces(self) -> list[Piece]:
        """Return the products of factors that the axis is made of."""
        found: list[Piece] = []
        start = 0
        for segment in self.segments:
            inner, stride = [Piece()], 1
            for part in reversed(segment):
                own = [Piece(0, (part,), (1,))] if isinstance(part, Factor) else part.pieces()
                inner = [piece.inside(outer, stride) for outer in own for piece in inner]
                stride *= part.size
            found += [Piece(start + p.start, p.factors, p.strides) for p in inner]
            start += stride
        return found

    def to_json(self) -> object:
        """Return the shortest JSON form: a size, a name, or a `product` / `concat` of them."""
        segments = [_segment_to_json(segment) for segment in self.segments]
        return segments[0] if len(segments) == 1 else {"concat": segments}

    @classmethod
    def from_json(cls, data: object, sizes: Mapping[str, int]) -> "Axis":
        """Read the form written by `to_json`.

        Args:
            data: an int (fixed extent), a group name, {"product": [...]} or {"concat": [...]};
                a product may hold concatenations. "name^-1" is the group `name` with the power -1
                of its signs and scales.
            sizes: group name -> number of units.

        Raises:
            SpecError: the form is none of these or names a group that is not in `sizes`.
        """
        return _axis_from_json(data, sizes, _DEEPEST)


def segment_size(segment: Segment) -> int:
    """Return the number of entries that a segment covers."""
    size = 1
    for part in segment:
        size *= part.size
    return size


def shown(value: object) -> str:
    """Return what stands in a file, not longer than a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _segment_to_json(segment: Segment) -> object:
    if len(segment) == 1 and isinstance(segment[0], Factor):
        return _factor_to_json(segment[0])
    parts = [p.to_json() if isinstance(p, Axis) else _factor_to_json(p) for p in segment]
    return {"product": parts}


def _factor_to_json(factor: Factor) -> int | str:
    if isinstance(factor, Fixed):
        return factor.size
    return f"{factor.group}^{factor.power}" if factor.power else factor.group


def _axis_from_json(data: object, sizes: Mapping[str, int], depth: int) -> Axis:
    concat = _items(data, "concat")
    parts = [data] if concat is None else concat
    return Axis(tuple(_segment_from_json(part, sizes, depth) for part in parts))


def _segment_from_json(data: object, sizes: Mapping[str, int], depth: int) -> Segment:
    product = _items(data, "product")
    if product is None:
        return (_factor_from_json(data, sizes),)
    inner = [_items(part, "concat") is not None for part in product]
    if any(inner) and depth == 0:
        raise SpecError(f"expected at most {_DEEPEST} concatenations inside each other in an axis")
    return tuple(
        _axis_from_json(part, sizes, depth - 1) if is_axis else _factor_from_json(part, sizes)
        for part, is_axis in zip(product, inner, strict=True)
    )


def _items(data: object, kind: str) -> list[object] | None:
    """Return what a product or concatenation is of; None of what is something else."""
    if isinstance(data, dict) and set(data) == {kind} and isinstance(data[kind], list):
        items: list[object] = data[kind]
        return items
    return None


def _factor_from_json(data: object, sizes: Mapping[str, int]) -> Factor:
    if isinstance(data, bool) or not isinstance(data, int | str):
        raise SpecError(
            f"expected an axis as a size, a group name, {{'product': [...]}} or "
            f"{{'concat': [...]}}, got {shown(data)}"
        )
    if isinstance(data, int):
        if not 0 <= data < _MOST_PLACES:
            raise SpecError(
                f"expected an extent of a fixed axis from 0 to 2^63 - 1, got {shown(data)}"
            )
        return Fixed(data)
    name, _, power = data.partition("^")
    if name not in sizes:
        raise SpecError(
            f"axis names the group {shown(name)}, which is not among the groups {sorted(sizes)}; "
            "add it to 'groups' or correct the name"
        )
    if power not in ("", "1", "-1"):
        raise SpecError(f"expected the power 1 or -1 behind '^', got {data!r}")
    return Units(sizes[name], name, int(power or 0))
