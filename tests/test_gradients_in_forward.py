"""Networks whose forward takes gradients: forces of an energy."""

from collections.abc import Callable

import pytest
import torch
from networks import mlp
from torch import Tensor, nn

from gpu_align import align, discover

Z, POSITIONS = torch.tensor([0, 1, 2]), torch.randn(3, 3)


class Atoms(nn.Module):
    """A small SchNet: filters of distances, one message, an energy and its forces."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.filter = nn.Embedding(5, 8), nn.Linear(4, 8)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Sequential(nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 1))

    def forward(self, z: Tensor, positions: Tensor) -> dict[str, Tensor]:
        positions.requires_grad_()
        first, second = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
        distances = (positions[first] - positions[second]).norm(dim=-1, keepdim=True)
        filters = torch.tanh(self.filter(torch.exp(-((distances - torch.arange(4.0)) ** 2))))
        x = self.embed(z)
        message = torch.zeros_like(x).index_add(0, first, x[second] * filters)
        energy = self.out(x + self.mix(message)).sum(0)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return {"energy": energy, "forces": -gradient}


class Energy(nn.Module):
    """An energy of points and its gradient, with the means to take it."""

    def __init__(self, own_mode: bool, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 1))
        self.own_mode = own_mode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(self.own_mode or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            energy = self.net(x).sum()
            return energy, torch.autograd.grad(energy, x)[0]


def test_forces_are_traced_and_kept() -> None:
    torch.manual_seed(0)
    spec = discover(Atoms(), (Z, POSITIONS))
    assert 6 in [group.size for group in spec.groups.values()]
    source, target = Atoms(), Atoms()
    result = align(source, target, example_inputs=(Z, POSITIONS))
    assert result.function_difference < 1e-9
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert not POSITIONS.requires_grad


@pytest.mark.parametrize("own_mode", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.SiLU, nn.ELU, nn.GELU, nn.ReLU])
def test_hidden_units_of_an_energy_are_free(own_mode: bool, activation: Callable) -> None:
    spec = discover(Energy(own_mode, activation), torch.randn(2, 3))
    assert [group.size for group in spec.groups.values()] == [8]
    assert list(spec.outputs) == ["0", "1"]


def test_gradients_that_are_not_taken_cost_nothing() -> None:
    model = mlp([3, 4, 2])
    result = align(model, model, example_inputs=torch.randn(2, 3))
    assert not any(tensor.requires_grad for tensor in result.state_dict.values())
