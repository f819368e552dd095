"""What a spec says beside the axes of tensors: groups, phases, pins, and scales of norms."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """The bias of units whose sines only linear layers read: it may be shifted by half periods.

        sin(w0 (W x + b + k pi / w0)) = (-1)^k sin(w0 (W x + b))

    for every integer k; where k is odd, what reads the unit (power -1) is negated.

    Attributes:
        bias: name of the tensor that has b, [units].
        shift: half a period, pi / w0.
    """

    bias: str
    shift: float


@dataclass(frozen=True)
class Group:
    """Units that may be reordered together wherever they appear.

    A group with a parent has `size` units inside each unit of its parent: they are reordered
    inside it, in each in their own way, and go along where it goes. So have the dimensions of an
    attention head, or the channels of a grouped convolution. (The wreath product of the two.)

    The units of a fixed group stay where they are, like heads that each have a slope of their own:
    it only tells apart the units inside it.

    Attributes:
        name: how the group is called.
        size: number of units, of each unit of the parent if there is one.
        parent: name of a group without a parent.
        signed: each unit may also be negated (tanh, sin, linear).
        scaled: each unit may also be multiplied by a positive number (relu, linear).
        fixed: the units stay where they are.
        phase: what may be shifted in front of a sine; None for nothing.
    """

    name: str
    size: int
    parent: str | None = None
    signed: bool = False
    scaled: bool = False
    fixed: bool = False
    phase: Phase | None = None


@dataclass(frozen=True)
class Pin:
    """An axis of a tensor that stays fixed, and why."""

    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class NormScale:
    """A layer that only a batch norm reads: each of its rows may have any positive scale s.

        weight' = s weight,  bias' = s bias,  mean' = s mean,
        variance' = s² (variance + eps) - eps

    leave the outputs of the batch norm as they are in evaluation mode.

    Attributes:
        weight: name of the layer's weight, its rows along the first axis.
        bias: name of the layer's bias, or None.
        mean, variance: names of the running statistics.
        eps: of the batch norm.
    """

    weight: str
    bias: str | None
    mean: str
    variance: str
    eps: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its tensors."""
        names = (self.weight, self.bias, self.mean, self.variance)
        return tuple(name for name in names if name is not None)
