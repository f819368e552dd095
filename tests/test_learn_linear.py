"""Equivariant linear layers: the counts, the basis, equivariance, what each variant leaves out."""

from collections.abc import Callable

import learn_cases as cases
import pytest
import torch
from learn_cases import SEQUENCES, SPECS, chain, random_features, relative_error, spec_of
from marks import slow
from networks import FAMILIES

from gpu_align import InputError, PermutationSpec
from gpu_align.learn import EquivariantLinear, WeightSpace, dimension

COUNTS: dict[str, tuple[Callable[[], PermutationSpec], int, int]] = {
    "2-3-2-1": (lambda: chain(2, 3, 2, 1), 75, 7),
    "2-2-2-2-1": (lambda: chain(2, 2, 2, 2, 1), 117, 9),
    "residual": (cases.residual, 62, 5),
    "attention": (cases.attention, 103, 5),
    "convolutions": (cases.convolutions, 178, 10),
    "concatenation": (cases.concatenation, 44, 5),
    "signs": (cases.tanh, 15, 1),
}
"""Spec, maps and invariant weights."""


@pytest.mark.parametrize("name", COUNTS)
def test_dimension_is_the_number_of_orbits(name: str) -> None:
    make, maps, affine = COUNTS[name]
    assert cases.orbits(make()) == (maps, affine)
    assert dimension(make()) == (maps, affine)


@pytest.mark.parametrize("name", [*FAMILIES, "recurrent"])
def test_dimension_is_the_number_of_orbits_of_nested_groups(name: str) -> None:
    assert dimension(spec_of(name)) == cases.orbits(spec_of(name))


@pytest.mark.parametrize(
    ("widths", "maps", "affine"),
    [
        ((2, 32, 32, 1), 75, 7),
        ((1, 32, 32, 1), 55, 6),
        ((64, 32, 32, 10), 12_070, 87),
        # The published layer has 1,308: one map to the last layer for all of its rows.
        ((8, 128, 128, 128, 10), 1_344, 33),
        ((784, 128, 128, 128, 10), 1_272_432, 809),
    ],
)
def test_dimension_of_wide_networks(widths: tuple[int, ...], maps: int, affine: int) -> None:
    assert dimension(chain(*widths)) == (maps, affine)


@pytest.mark.parametrize("name", COUNTS)
def test_the_layer_is_the_whole_basis(name: str) -> None:
    """Its maps, each as a matrix on the weights, are as many as there are, and independent."""
    make, maps, affine = COUNTS[name]
    space = WeightSpace(make())
    layer = EquivariantLinear(space, 1, 1).double()
    features = space.from_state_dicts(cases.entries(space.spec))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        rows = []
        for weight in layer.weights:
            for place in range(weight.numel()):
                weight.view(-1)[place] = 1
                rows.append(torch.cat([y.flatten() for y in layer(features)]))
                weight.view(-1)[place] = 0
        constants = []
        for place in range(len(layer.bias)):
            layer.bias[place] = 1
            constants.append(torch.cat([y[0].flatten() for y in layer(features)]))
            layer.bias[place] = 0
    assert len(rows) == maps
    assert int(torch.linalg.matrix_rank(torch.stack(rows))) == maps
    assert len(constants) == affine
    assert int(torch.linalg.matrix_rank(torch.stack(constants))) == affine


LARGE = ("dense_net", "u_net", "se_resnet", "resnext", "resnet", "inception")


@pytest.mark.parametrize(
    "name", slow([*SPECS, *SEQUENCES], but=[s for s in SPECS if s not in LARGE])
)
def test_the_layer_commutes_with_the_symmetries(name: str) -> None:
    space = WeightSpace(spec_of(name), buffers=True)
    features = random_features(space, 3, channels=2)
    elements = space.random_elements(3, seed=0)
    moved = space.act(elements, features, channels=2)
    for variant in ({}, {"far": "low_rank", "fixed_rank": 2}, {"far": "none"}):
        layer = EquivariantLinear(space, 2, 3, **variant).double()
        with torch.no_grad():
            layer.bias.normal_()
            expected = space.act(elements, layer(features), channels=3)
            assert relative_error(layer(moved), expected) < 1e-12


def test_the_layer_has_as_many_weights_as_there_are_maps() -> None:
    spec = spec_of("heads")
    maps, affine = dimension(spec)
    layer = EquivariantLinear(spec, 2, 3)
    assert sum(weight.numel() for weight in layer.weights) == 6 * maps
    assert layer.bias.numel() == 3 * affine
    assert sum(p.numel() for p in layer.parameters()) == 6 * maps + 3 * affine


def test_rows_of_the_last_layer_are_told_apart() -> None:
    """Each reads the two vectors of the units before it, biases and mean weights, in its own way.

    The published layer gives all rows the same value.
    """
    space = WeightSpace(chain(2, 5, 5, 3))
    layer = EquivariantLinear(space, 1, 1).double()
    last = [cell.name for cell in space.cells].index("4.weight")
    features = list(random_features(space, 1, 1))
    features[last] = torch.zeros_like(features[last])
    rows = layer(tuple(features))[last][0].detach()
    assert torch.linalg.matrix_rank(rows - rows.mean(0)) == 2


def test_cells_without_a_common_group_meet_in_far_only() -> None:
    space = WeightSpace(chain(2, 5, 6, 7, 3))
    names = [cell.name for cell in space.cells]
    features = random_features(space, 1, 1)
    changed = tuple(x + (n == "0.weight") for n, x in zip(names, features, strict=True))
    for far, expected in [
        ("full", set(names)),
        ("low_rank", set(names)),
        ("none", {"0.weight", "0.bias", "2.weight"}),
    ]:
        layer = EquivariantLinear(space, 1, 1, far=far).double()
        outputs = zip(names, layer(features), layer(changed), strict=True)
        assert {n for n, x, y in outputs if not torch.allclose(x, y)} == expected, far


def test_low_rank_has_few_weights_for_many_cells() -> None:
    spec = spec_of("resnet")
    sizes = {
        far: sum(p.numel() for p in EquivariantLinear(spec, 4, 4, far=far).parameters())
        for far in ("full", "low_rank", "none")
    }
    assert sizes["none"] < sizes["low_rank"] < sizes["full"]


def test_wide_fixed_axes_are_projected() -> None:
    spec = chain(784, 16, 16, 10)
    layer = EquivariantLinear(spec, 2, 2, fixed_rank=4)
    assert sum(p.numel() for p in layer.parameters()) < 15_000 < dimension(spec)[0]
    space = WeightSpace(spec)
    outputs = layer(tuple(x.float() for x in random_features(space, 2, 2)))
    assert [tuple(y.shape[1:]) for y in outputs] == [(*c.sizes, 2 * c.fixed) for c in space.cells]


def test_outputs_have_the_variance_of_the_inputs() -> None:
    space = WeightSpace(chain(2, 64, 64, 1))
    torch.manual_seed(0)
    x = tuple(y.float() for y in random_features(space, 8, 32))
    y = EquivariantLinear(space, 32, 32)(x)[2]
    assert 0.1 < float(y.detach().var()) < 1  # pools of independent entries are small


def test_the_layer_is_saved_and_loaded_as_any_module() -> None:
    spec = spec_of("fixed_heads")
    torch.manual_seed(0)
    layer, other = EquivariantLinear(spec, 1, 2), EquivariantLinear(spec, 1, 2)
    other.load_state_dict(layer.state_dict())
    x = tuple(y.float() for y in random_features(WeightSpace(spec), 2, 1))
    assert all(torch.equal(a, b) for a, b in zip(layer(x), other(x), strict=True))
    assert "11 -> 11 cells, 1 -> 2 channels" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 1), {}, "at least one channel"),
        ((1, 1), {"far": "near"}, "expected far 'full', 'low_rank' or 'none', got 'near'"),
        ((1, 1), {"fixed_rank": 0}, "fixed_rank of at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EquivariantLinear(chain(2, 3, 1), *arguments, **options)


def test_features_of_another_width_are_refused() -> None:
    space = WeightSpace(chain(2, 3, 1))
    with pytest.raises(InputError, match="do not fit the spec with 2 channels"):
        EquivariantLinear(space, 2, 2).double()(random_features(space, 1, 1))
