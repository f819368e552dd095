"""Layers and heads: all commute with planted symmetries, training differs from evaluation."""

from collections.abc import Callable

import pytest
import torch
from learn_cases import chain, random_features, relative_error, spec_of, tanh
from marks import each_once
from networks import FAMILIES
from torch import Tensor, nn

from gpu_align import InputError, Permutation
from gpu_align.learn import (
    EquivariantActivation,
    EquivariantBatchNorm,
    EquivariantDropout,
    EquivariantLayerNorm,
    EquivariantLinear,
    Features,
    FourierFeatures,
    InvariantHead,
    ResidualBlock,
    UnitFeatures,
    WeightSpace,
)

NAMES = [*FAMILIES, "recurrent", "trilinear", "groupnorm", "siren", "resnext"]
LAYERS: dict[str, Callable[[WeightSpace], nn.Module]] = {
    "layer_norm": lambda space: EquivariantLayerNorm(space, 3),
    "batch_norm": lambda space: EquivariantBatchNorm(space, 3),
    "activation": lambda space: EquivariantActivation(space, 3),
    "dropout": lambda space: EquivariantDropout(0.5),
    "residual": lambda space: ResidualBlock(space, 3),
    "fourier": lambda space: FourierFeatures(space, 2, c_in=3),
}


def perturbed(module: nn.Module) -> nn.Module:
    """Return a module in float64 whose parameters are all random, those that start at 0 too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4
    return module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "layer"), each_once(NAMES, LAYERS))
def test_layers_commute_with_the_symmetries(name: str, layer: str, training: bool) -> None:
    space = WeightSpace(spec_of(name))
    module = perturbed(LAYERS[layer](space)).train(training)
    features = random_features(space, 4, channels=3)
    elements = space.random_elements(4, seed=0)
    torch.manual_seed(1)
    first = module(features)
    torch.manual_seed(1)
    got = module(space.act(elements, features, channels=3))
    channels = first[0].shape[-1] // space.cells[0].fixed
    assert relative_error(got, space.act(elements, first, channels)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_network_is_invariant(name: str) -> None:
    space = WeightSpace(spec_of(name))
    model = perturbed(
        nn.Sequential(
            FourierFeatures(space, 1),
            EquivariantLinear(space, 3, 4, far="low_rank"),
            ResidualBlock(space, 4, far="none"),
            EquivariantBatchNorm(space, 4),
            InvariantHead(space, 4, 5, hidden=6, fixed_rank=3),
        )
    )
    features = random_features(space, 3, 1)
    moved = space.act(space.random_elements(3, seed=0), features)
    expected = model(features).detach()
    assert expected.shape == (3, 5)
    assert relative_error((model(moved).detach(),), (expected,)) < 1e-12
    assert float(expected.std(0).min()) > 1e-4  # other networks get other numbers


def in_order(permutation: Permutation, units: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return the vectors of the units of one network as a permutation moves them."""
    ones = {name: torch.ones(len(perm)) for name, perm in permutation.perms.items()}
    signs = {**ones, **permutation.signs}
    return {g: x[number][permutation[g]] * signs[g][:, None] for g, x in units.items()}


@pytest.mark.parametrize("name", NAMES)
def test_unit_features_go_where_their_units_go(name: str) -> None:
    space = WeightSpace(spec_of(name))
    module = perturbed(UnitFeatures(space, 3, 4))
    features = random_features(space, 3, 3)
    elements = space.random_elements(3, seed=0)
    units = {g: x.detach() for g, x in module(features).items()}
    moved = {g: x.detach() for g, x in module(space.act(elements, features, 3)).items()}
    spec = space.spec
    assert list(units) == [g for g in spec.groups if not spec.groups[g].fixed]
    for number, permutation in enumerate(elements.permutations()):
        for group, expected in in_order(permutation, units, number).items():
            assert expected.shape == (spec.units(group), 4)
            torch.testing.assert_close(moved[group][number], expected, rtol=1e-11, atol=1e-11)


def test_unit_features_match_a_planted_permutation() -> None:
    """Equal vectors belong to the units that were exchanged, whatever the weights of the layer."""
    space = WeightSpace(chain(4, 8, 8, 3))
    model = perturbed(
        nn.Sequential(
            EquivariantLinear(space, 1, 8), ResidualBlock(space, 8), UnitFeatures(space, 8, 8)
        )
    )
    features = random_features(space, 1, 1)
    element = space.random_elements(1, seed=0)
    before, after = model(features), model(space.act(element, features))
    for group, perm in element.perms.items():
        nearest = torch.cdist(after[group][0], before[group][0]).argmin(1)
        torch.testing.assert_close(nearest, perm[0])


def test_signs_leave_an_invariant_head_something_to_read() -> None:
    space = WeightSpace(tanh())
    head = InvariantHead(space, 1, 2).double()
    features = random_features(space, 2, 1)
    assert all(
        x.abs().sum() > 0 for x in torch.autograd.grad(head(features).sum(), head.out.weight)
    )
    assert not torch.allclose(*head(features))


def test_dropout_obeys_training() -> None:
    space = WeightSpace(chain(2, 5, 3))
    features = random_features(space, 500, 8)
    dropout = EquivariantDropout(0.25)
    for x, y in zip(features, dropout(features), strict=True):
        kept = (y != 0).double()
        torch.testing.assert_close(y, x * kept / 0.75)
        assert abs(float(kept.mean()) - 0.75) < 0.03
        flat = kept.reshape(len(x), -1, x.shape[-1])
        assert bool((flat == flat[:, :1]).all())  # whole channels
    assert dropout.eval()(features) is features


def test_batch_norm_normalises_each_place_and_remembers() -> None:
    space = WeightSpace(chain(2, 64, 3))
    norm = EquivariantBatchNorm(space, 2, momentum=1.0).double()
    features = tuple(3 * x + 5 for x in random_features(space, 64, 2))
    first = norm(features)
    for y in first:
        rows = y.detach().flatten(0, -2)
        torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]))
        torch.testing.assert_close(
            rows.var(0, correction=0), torch.ones_like(rows[0]), rtol=1e-4, atol=0
        )
    again = norm.eval()(features)
    for x, y in zip(first, again, strict=True):
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02)


def test_batch_norm_of_signed_cells_keeps_its_mean() -> None:
    space = WeightSpace(tanh())
    norm = EquivariantBatchNorm(space, 2, momentum=1.0).double()
    features = tuple(x + 2 for x in random_features(space, 200, 2))
    first = norm(features)
    for cell, y in zip(space.cells, first, strict=True):
        rows = y.detach().flatten(0, -2)
        torch.testing.assert_close(
            rows.square().mean(0), torch.ones_like(rows[0]), rtol=1e-4, atol=0
        )
        assert bool((rows.mean(0).abs() > 0.5).all()) == cell.is_odd
    again = norm.eval()(features)
    for x, y in zip(first, again, strict=True):
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02)


def test_fourier_features_are_sines_of_doubled_frequencies() -> None:
    space = WeightSpace(chain(2, 3, 1))
    features = random_features(space, 2, 1)
    (bias,) = (n for n, cell in enumerate(space.cells) if cell.name == "0.bias")
    made = FourierFeatures(space, 2, first=0.5).double()(features)[bias]
    x = features[bias][..., 0]
    waves = [x, torch.sin(x / 2), torch.sin(x), torch.cos(x / 2), torch.cos(x)]
    torch.testing.assert_close(made, torch.stack(waves, -1))


def test_layers_learn_together() -> None:
    """A network on weights learns to tell the scale of a layer, whatever the order of units."""
    torch.manual_seed(0)
    space = WeightSpace(chain(2, 6, 6, 1))
    labels = torch.arange(64) % 2
    features: Features = tuple(x.float() for x in random_features(space, 64, 1))
    features = (
        features[0],
        features[1],
        features[2] * (1 + labels[:, None, None, None]),
        *features[3:],
    )
    model = nn.Sequential(
        EquivariantLinear(space, 1, 8),
        ResidualBlock(space, 8, dropout=0.1),
        InvariantHead(space, 8, 2),
    )
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimiser.step()
    moved = space.act(space.random_elements(64, seed=0), features)
    assert float((model.eval()(moved).argmax(1) == labels).double().mean()) > 0.9


def test_bad_arguments_are_refused() -> None:
    space = WeightSpace(chain(2, 3, 1))
    features = random_features(space, 1, 1)
    with pytest.raises(InputError, match="below 1, got 1"):
        EquivariantDropout(1.0)
    with pytest.raises(InputError, match="at least one frequency, got 0"):
        FourierFeatures(space, 0)
    for module in (EquivariantLayerNorm(space, 2), InvariantHead(space, 2, 1)):
        with pytest.raises(InputError, match="do not fit the spec with 2 channels"):
            module.double()(features)
