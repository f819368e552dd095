"""Adam as a function: what it keeps between two steps is a value that can be stored."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_align._search._state import stored

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


@stored
@dataclass(frozen=True)
class Adam:
    """Parameters and their running moments.

    Attributes:
        parameters: name -> tensor.
        first, second: name -> running mean of the gradient, and of its square.
        steps: number of steps taken.

    Source: Kingma & Ba, "Adam" (ICLR 2015), algorithm 1.
    """

    parameters: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> "Adam":
        """Return parameters before the first step."""
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return cls(dict(parameters), zeros, dict(zeros))

    def after(self, gradients: Mapping[str, Tensor], rate: float) -> "Adam":
        """Return the parameters one step down the gradients; nothing is changed in place."""
        taken = self.steps + 1
        first = {n: torch.lerp(m, gradients[n], 1 - _FIRST) for n, m in self.first.items()}
        second = {
            n: torch.addcmul(v * _SECOND, gradients[n], gradients[n], value=1 - _SECOND)
            for n, v in self.second.items()
        }
        length, scale = rate / (1 - _FIRST**taken), (1 - _SECOND**taken) ** 0.5
        parameters = {
            n: torch.addcdiv(
                p, first[n], second[n].sqrt().div_(scale).add_(_EPSILON), value=-length
            )
            for n, p in self.parameters.items()
        }
        return Adam(parameters, first, second, taken)
