"""Powers: by what a value is multiplied when the units of a group get signs or scales.

Let each unit of a group be multiplied by a sign or by a positive scale. Wherever the group lies on
an axis of a value, weights and activations alike, its entries are then multiplied by some power
of it: 1, -1 or 0. Ops say which powers are equal, opposite or zero; that is union-find over
unknowns with an orientation. What stays unknown at the end is a choice: a symmetry.

Signs and scales have unknowns of their own, for they part at most activations: relu keeps scales,
tanh keeps signs. Of a sign 1 and -1 are the same power.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_align._symmetry._classes import AxisClass


class UnmatchedError(Exception):
    """The units along two axes that meet are not the same ones: nothing can be said."""


class Unknown:
    """A power that is not known yet, equal or opposite to others of its class; or known to be 0."""

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero
        self._parent: Unknown | None = None
        self._turn = 1
        self._size = 1

    def find(self) -> tuple["Unknown", int]:
        """Return the representative of the class, and 1 or -1: equal or opposite to it."""
        root, turn = self, 1
        while root._parent is not None:
            root, turn = root._parent, turn * root._turn
        return root, turn

    def relative_to(self, other: "Unknown") -> int | None:
        """Return 1 or -1 if it is equal or opposite to the other, None if neither is known."""
        (root, mine), (its_root, its) = self.find(), other.find()
        return mine * its if root is its_root else None

    @property
    def zero(self) -> bool:
        """Whether the power is known to be 0."""
        return self.find()[0]._zero

    def set_zero(self) -> None:
        """Say that the power is 0, and with it all of its class."""
        self.find()[0]._zero = True

    def tie(self, other: "Unknown", turn: int) -> None:
        """Say that the power is `turn` (1 or -1) times the other."""
        (root, mine), (kept, its) = self.find(), other.find()
        if root is kept:
            root._zero = root._zero or mine != turn * its
            return
        if root._size > kept._size:
            root, kept = kept, root
        root._parent, root._turn = kept, mine * turn * its
        kept._size += root._size
        kept._zero = kept._zero or root._zero


@dataclass(frozen=True)
class Power:
    """The power of the units of one group at one place of a value's layout.

    Attributes:
        leaf: the units.
        sign, scale: the power of their signs, and of their scales.
    """

    leaf: AxisClass
    sign: Unknown
    scale: Unknown

    @classmethod
    def fresh(cls, leaf: AxisClass) -> "Power":
        """Return a power of which nothing is known."""
        return cls(leaf, Unknown(), Unknown())

    @classmethod
    def none(cls, leaf: AxisClass) -> "Power":
        """Return the power 0."""
        return cls(leaf, Unknown(zero=True), Unknown(zero=True))

    @property
    def freedom(self) -> int:
        """How many of sign and scale are not known to be 0."""
        return (not self.sign.zero) + (not self.scale.zero)

    def set_zero(self) -> None:
        """Say that both powers are 0."""
        self.sign.set_zero()
        self.scale.set_zero()

    def inverse(self) -> "Power":
        """Return the power of what this value divides."""
        scale = Unknown()
        scale.tie(self.scale, -1)
        return Power(self.leaf, self.sign, scale)


@dataclass(frozen=True)
class AxisPowers:
    """The powers along one axis of a value, one for each place where a group lies on it."""

    axis: AxisClass
    powers: tuple[Power, ...] = ()

    @property
    def leaves(self) -> list[AxisClass]:
        """The groups that lie on the axis, in order, with repetition."""
        return [power.leaf for power in self.powers]


class TensorPowers(tuple[AxisPowers, ...]):
    """The powers along the axes of one value.

    Attributes:
        is_stored: the value is made of parameters and buffers alone.
        is_zero: all of its entries are 0.
    """

    is_stored = False
    is_zero = False

    @property
    def powers(self) -> list[Power]:
        """The powers along all axes, in order."""
        return [power for axis in self for power in axis.powers]

    @property
    def leaves(self) -> list[AxisClass]:
        """The groups that lie on all axes, in order, with repetition."""
        return [power.leaf for power in self.powers]


def placed(axes: TensorPowers, powers: Iterable[Power]) -> TensorPowers:
    """Return powers of a value that is moved: each unit keeps its power wherever it comes to lie.

    Args:
        axes: of the new value; units that are not among `powers` keep the powers that they have
            there.
        powers: of the old value; of units that occur twice they become equal.
    """
    kept: dict[AxisClass, Power] = {}
    for power in powers:
        first = kept.setdefault(power.leaf, power)
        _tie([power], [first], 1)
    return TensorPowers(
        AxisPowers(axis.axis, tuple(kept.get(power.leaf, power) for power in axis.powers))
        for axis in axes
    )


def set_zero(axes: Iterable[AxisPowers]) -> None:
    """Say that the entries do not change along these axes."""
    for axis in axes:
        for power in axis.powers:
            power.set_zero()


def set_equal(a: AxisPowers, b: AxisPowers) -> None:
    """Say that entries along both axes are multiplied alike."""
    _tie(a.powers, b.powers, 1)


def set_opposite(a: AxisPowers, b: AxisPowers) -> None:
    """Say that the product of entries along both axes does not change."""
    _tie(a.powers, b.powers, -1)


def _tie(first: Sequence[Power], second: Sequence[Power], turn: int) -> None:
    if [power.leaf for power in first] != [power.leaf for power in second]:
        raise UnmatchedError
    for a, b in zip(first, second, strict=True):
        a.sign.tie(b.sign, 1)
        a.scale.tie(b.scale, turn)


def unchanged(axis: AxisPowers) -> AxisPowers:
    """Return the axis of a function that keeps signs and scales."""
    return axis


def no_powers(axis: AxisPowers) -> AxisPowers:
    """Return the axis of a value that does not change."""
    return AxisPowers(axis.axis, tuple(Power.none(power.leaf) for power in axis.powers))


def odd(axis: AxisPowers) -> AxisPowers:
    """Return the axis of an odd function: signs pass, scales do not."""
    for power in axis.powers:
        power.scale.set_zero()
    return axis


def homogeneous(axis: AxisPowers) -> AxisPowers:
    """Return the axis of a positively homogeneous function: scales pass, signs do not."""
    for power in axis.powers:
        power.sign.set_zero()
    return axis


def even(axis: AxisPowers) -> AxisPowers:
    """Return the axis of an even function: it does not see signs, and scales do not pass."""
    for power in axis.powers:
        power.scale.set_zero()
    return no_powers(axis)


def absolute(axis: AxisPowers) -> AxisPowers:
    """Return the axis of absolute values: scales pass, signs are not seen."""
    return AxisPowers(
        axis.axis,
        tuple(Power(power.leaf, Unknown(zero=True), power.scale) for power in axis.powers),
    )


def signs_only(axis: AxisPowers) -> AxisPowers:
    """Return the axis of signs: they pass, scales are not seen."""
    return AxisPowers(
        axis.axis,
        tuple(Power(power.leaf, power.sign, Unknown(zero=True)) for power in axis.powers),
    )


def inverse(axis: AxisPowers) -> AxisPowers:
    """Return the axis of reciprocals."""
    return AxisPowers(axis.axis, tuple(power.inverse() for power in axis.powers))


def multiplied(a: AxisPowers, b: AxisPowers, stored: tuple[bool, bool]) -> AxisPowers:
    """Return the axis of a product of two values on which the same units lie.

    The sum of two unknown powers cannot be said, so one of them becomes 0: that of a stored tensor
    rather than that of an activation, that of less freedom rather than more.

    Args:
        a, b: the axes of the two values.
        stored: which of the values are stored tensors.
    """
    if a.leaves != b.leaves:
        raise UnmatchedError
    pairs = zip(a.powers, b.powers, strict=True)
    return AxisPowers(a.axis, tuple(_product(x, y, stored) for x, y in pairs))


def _product(a: Power, b: Power, stored: tuple[bool, bool]) -> Power:
    b_is_weak = (not stored[0], a.freedom) >= (not stored[1], b.freedom)
    weak = b if b_is_weak else a
    # Signs cancel if they are equal, scales if they are opposite.
    signs_cancel = a.sign.relative_to(b.sign) is not None
    scales_cancel = a.scale.relative_to(b.scale) == -1
    return Power(
        a.leaf,
        _sum(a.sign, b.sign, weak.sign, cancels=signs_cancel),
        _sum(a.scale, b.scale, weak.scale, cancels=scales_cancel),
    )


def _sum(a: Unknown, b: Unknown, weak: Unknown, *, cancels: bool) -> Unknown:
    if cancels:
        return Unknown(zero=True)
    if not (a.zero or b.zero):
        weak.set_zero()
    return b if a.zero else a
