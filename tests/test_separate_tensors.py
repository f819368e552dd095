"""Units that are tensors of their own: a limit that the README names."""

import pytest
import torch
from oracles import assert_same_function
from torch import Tensor, nn

from gpu_align import CoordinateDescent, align

HEADS, WIDTH, INPUTS = 3, 4, 8


class Separate(nn.Module):
    """Heads that are modules of their own, side by side or added."""

    def __init__(self, *, summed: bool) -> None:
        super().__init__()
        self.summed = summed
        self.heads = nn.ModuleList(nn.Linear(INPUTS, WIDTH) for _ in range(HEADS))
        self.out = nn.Linear(WIDTH if summed else HEADS * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = [torch.relu(head(x)) for head in self.heads]
        return self.out(sum(heads) if self.summed else torch.cat(heads, -1))


class Together(nn.Module):
    """The same heads in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(INPUTS, HEADS * WIDTH)
        self.out = nn.Linear(HEADS * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.heads(x)))


def swapped(state: dict[str, Tensor], *, summed: bool) -> dict[str, Tensor]:
    """Let the first two heads change places, and what reads them."""
    found = {name: tensor.clone() for name, tensor in state.items()}
    for part in ("weight", "bias"):
        found[f"heads.0.{part}"] = state[f"heads.1.{part}"].clone()
        found[f"heads.1.{part}"] = state[f"heads.0.{part}"].clone()
    if not summed:
        first, second, *rest = state["out.weight"].split(WIDTH, 1)
        found["out.weight"] = torch.cat([second, first, *rest], 1)
    return found


@pytest.mark.parametrize("summed", [False, True], ids=["concatenated", "summed"])
def test_separate_heads_keep_their_places(summed: bool) -> None:
    """Their units are reordered, which is safe; that the networks are equal is not seen."""
    torch.manual_seed(0)
    target, inputs = Separate(summed=summed), torch.randn(2, INPUTS)
    state = dict(target.state_dict())
    source = swapped(state, summed=summed)
    assert_same_function(target, inputs, state, source)
    result = align(source, target, example_inputs=inputs, search=CoordinateDescent())
    assert result.function_preserved
    assert result.distance >= result.lower_bound > 0
    assert all(len(perm) == WIDTH for perm in result.permutation.perms.values())


def test_heads_in_one_tensor_are_found() -> None:
    torch.manual_seed(0)
    target, inputs = Together(), torch.randn(2, INPUTS)
    state = dict(target.state_dict())
    order = torch.arange(HEADS * WIDTH).roll(WIDTH)
    source = {
        "heads.weight": state["heads.weight"][order],
        "heads.bias": state["heads.bias"][order],
        "out.weight": state["out.weight"][:, order],
        "out.bias": state["out.bias"],
    }
    assert_same_function(target, inputs, state, source)
    assert align(source, target, example_inputs=inputs).distance == 0
