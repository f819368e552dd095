"""What stands between two linear layers: norms, activations, dropout, residual blocks, features.

All take and return features by cell and commute with the symmetries. Where entries change their
signs with units, they are odd functions of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_align._errors import InputError
from gpu_align._symmetry import PermutationSpec
from gpu_align.learn._cells import Features, check_features
from gpu_align.learn._linear import EquivariantLinear, Far
from gpu_align.learn._space import WeightSpace, space_of


class EquivariantLayerNorm(nn.Module):
    """Normalise the channels of each entry: their root mean square only, where signs change."""

    def __init__(
        self, spec: PermutationSpec | WeightSpace, channels: int, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.cells, self.channels = space_of(spec).cells, channels
        self.norms = nn.ModuleList(
            nn.RMSNorm(cell.fixed * channels, eps)
            if cell.is_odd
            else nn.LayerNorm(cell.fixed * channels, eps)
            for cell in self.cells
        )

    def forward(self, features: Features) -> Features:
        """Return features [b, *sizes, fixed * channels] of each cell, normalised."""
        check_features(features, self.cells, self.channels)
        return tuple(norm(x) for norm, x in zip(self.norms, features, strict=True))


class EquivariantBatchNorm(nn.Module):
    """Normalise each channel of each fixed place over the batch and all entries of its cell.

    In training by the batch, which running means and variances remember, then by these.
    """

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.cells, self.channels = space_of(spec).cells, channels
        self.norms = nn.ModuleList(
            _OddBatchNorm(cell.fixed * channels, eps, momentum)
            if cell.is_odd
            else nn.BatchNorm1d(cell.fixed * channels, eps, momentum)
            for cell in self.cells
        )

    def forward(self, features: Features) -> Features:
        """Return features [b, *sizes, fixed * channels] of each cell, normalised."""
        check_features(features, self.cells, self.channels)
        return tuple(
            norm(x.flatten(0, -2)).reshape(x.shape)
            for norm, x in zip(self.norms, features, strict=True)
        )


class _OddBatchNorm(nn.Module):
    """A batch norm of values whose mean is 0, as their signs are anyone's: [n, k]."""

    running_square: Tensor

    def __init__(self, width: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("running_square", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        square = self.running_square
        if self.training:
            square = x.square().mean(0)
            self.running_square.lerp_(square.detach(), self.momentum)
        return x * (self.weight * (square + self.eps).rsqrt())


class EquivariantActivation(nn.Module):
    """SiLU; where entries change their signs, x times a gate that looks at |x| only.

    The gate is sigmoid(a |x| + b), with an a and a b of each channel.
    """

    def __init__(self, spec: PermutationSpec | WeightSpace, channels: int) -> None:
        super().__init__()
        self.cells, self.channels = space_of(spec).cells, channels
        odd = {n: cell for n, cell in enumerate(self.cells) if cell.is_odd}
        widths = {str(number): cell.fixed * channels for number, cell in odd.items()}
        self.slope = nn.ParameterDict({n: nn.Parameter(torch.ones(k)) for n, k in widths.items()})
        self.shift = nn.ParameterDict({n: nn.Parameter(-torch.ones(k)) for n, k in widths.items()})

    def forward(self, features: Features) -> Features:
        """Return features [b, *sizes, fixed * channels] of each cell."""
        check_features(features, self.cells, self.channels)
        made = []
        for number, x in enumerate(map(torch.Tensor.contiguous, features)):
            name = str(number)
            if name in self.slope:
                made.append(x * torch.sigmoid(x.abs() * self.slope[name] + self.shift[name]))
            else:
                made.append(F.silu(x))
        return tuple(made)


class EquivariantDropout(nn.Module):
    """In training set channels of whole cells to 0, in each network others, and scale the rest.

    The same channels are set to 0 at all entries, so each draw commutes with the symmetries.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise InputError(f"expected a probability of at least 0 and below 1, got {p}")
        self.p = p

    def forward(self, features: Features) -> Features:
        """Return features of the same shapes; in evaluation the same features."""
        if not self.training or self.p == 0:
            return features
        made = []
        for x in features:
            ones = x.new_ones(len(x), *(1,) * (x.ndim - 2), x.shape[-1])
            made.append(x * F.dropout(ones, self.p))
        return tuple(made)


class ResidualBlock(nn.Module):
    """x + linear(dropout(activation(norm(x)))), with as many channels out as in."""

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        channels: int,
        *,
        dropout: float = 0.0,
        far: Far = "full",
        fixed_rank: int | None = None,
    ) -> None:
        super().__init__()
        space = space_of(spec)
        self.branch = nn.Sequential(
            EquivariantLayerNorm(space, channels),
            EquivariantActivation(space, channels),
            EquivariantDropout(dropout),
            EquivariantLinear(space, channels, channels, far=far, fixed_rank=fixed_rank),
        )

    def forward(self, features: Features) -> Features:
        """Return features [b, *sizes, fixed * channels] of each cell."""
        branch: Features = self.branch(features)
        return tuple(x + y for x, y in zip(features, branch, strict=True))


class FourierFeatures(nn.Module):
    """The values beside sines and cosines of them, of frequencies that double.

    Where entries change their signs there are no cosines, but sines of twice as many frequencies.

    Source: positional encoding of NeRF (Mildenhall et al., ECCV 2020, section 5.1), of values here.
    """

    odd: Tensor
    even: Tensor

    def __init__(
        self,
        spec: PermutationSpec | WeightSpace,
        count: int,
        *,
        first: float = 1.0,
        c_in: int = 1,
    ) -> None:
        """Choose the frequencies.

        Args:
            spec: of the networks, or their space.
            count: of frequencies: first, 2 first, 4 first, ...
            first: the lowest angular frequency.
            c_in: channels of the features.
        """
        super().__init__()
        if count < 1:
            raise InputError(f"expected at least one frequency, got {count}")
        self.cells, self.c_in, self.c_out = space_of(spec).cells, c_in, c_in * (1 + 2 * count)
        self.register_buffer("even", first * 2.0 ** torch.arange(count), persistent=False)
        self.register_buffer("odd", first * 2.0 ** (torch.arange(2 * count) / 2), persistent=False)

    def forward(self, features: Features) -> Features:
        """Map [b, *sizes, fixed * c_in] of each cell to [b, *sizes, fixed * c_out]."""
        check_features(features, self.cells, self.c_in)
        made = []
        for cell, x in zip(self.cells, features, strict=True):
            value = x[..., None]
            if cell.is_odd:
                waves = [torch.sin(value * self.odd)]
            else:
                waves = [torch.sin(value * self.even), torch.cos(value * self.even)]
            made.append(torch.cat([value, *waves], -1).flatten(-2))
        return tuple(made)
