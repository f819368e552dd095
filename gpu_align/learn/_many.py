"""Training thousands of small networks at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from gpu_align._errors import InputError

Batch = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> inputs and targets of all networks, [n, ...] each."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks that were trained together.

    Attributes:
        states: a stack of their state dicts, name -> [n, *shape].
        losses: of each network in the last step, before it, [n].
        steps: how many each was trained for, int64 [n].
    """

    states: dict[str, Tensor]
    losses: Tensor
    steps: Tensor


def fresh_states(make: Callable[[], nn.Module], count: int, seed: int) -> dict[str, Tensor]:
    """Return a stack of networks as they are made; torch's generator is left as it was.

    Args:
        make: makes a module from torch's generator; all alike.
        count: how many.
        seed: of the generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters, buffers = stack_module_state([make() for _ in range(count)])
    if buffers:
        raise InputError(
            f"expected networks without buffers, got {sorted(buffers)}; running statistics are not "
            "trained together"
        )
    return {name: tensor.detach() for name, tensor in parameters.items()}


def train_together(
    model: nn.Module,
    states: dict[str, Tensor],
    batch: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    until: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train a stack of networks by Adam, each by its own loss; none depends on another.

    Args:
        model: how one of them is computed.
        states: the stack to begin with, on the device of the training.
        batch: the data of each step.
        loss: of the outputs of one network and its targets, a number.
        steps: how many, at least one.
        rate: of Adam.
        until: a network whose loss is this low stays as it is, as long as it is.
        progress: called after each step with the number of steps done.

    Raises:
        InputError: there are no steps.
    """
    if steps < 1:
        raise InputError(f"expected at least one step of training, got {steps}")
    weights = {name: tensor.clone().requires_grad_() for name, tensor in states.items()}
    optimiser = torch.optim.Adam(weights.values(), rate)

    def one(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, state, (x,)), y)

    run = vmap(one)
    done: Tensor | int = 0
    losses = torch.empty(0, device="cpu")
    for step in range(steps):
        losses = run(weights, *batch(step))
        optimiser.zero_grad()
        losses.sum().backward()
        losses = losses.detach()
        active = torch.ones_like(losses, dtype=torch.bool) if until is None else losses > until
        _step(optimiser, weights, active, every=until is None)
        done = done + active.long()
        if progress is not None:
            progress(step + 1)
    assert isinstance(done, Tensor)
    return Trained({name: tensor.detach() for name, tensor in weights.items()}, losses, done)


@torch.no_grad()
def _step(
    optimiser: torch.optim.Optimizer, weights: dict[str, Tensor], active: Tensor, *, every: bool
) -> None:
    """Take a step with some networks, or with every one."""
    before = {} if every else {name: tensor.clone() for name, tensor in weights.items()}
    optimiser.step()
    for name, old in before.items():
        moves = active.reshape(-1, *(1,) * (old.ndim - 1))
        weights[name].copy_(torch.where(moves, weights[name], old))
