"""Axes and specs: layouts against plain enumeration, JSON, counts of symmetries."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import CNN, FAMILIES, PAIRS, mlp, pair
from oracles import Symmetry, all_symmetries, moved_array, symmetry_of
from strategies import GROUPS, SIZES, axes, permutations, seeds, tensor_specs

from gpu_align import Permutation, PermutationSpec, SpecError, chain_spec
from gpu_align._symmetry._axis import Axis, Fixed, Units
from gpu_align._symmetry._move import move, multiply, one_of_each
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._tensor_spec import TensorSpec

PERMS = {"g": torch.tensor([2, 0, 1]), "h": torch.tensor([1, 0]), "one": torch.tensor([0])}
LAYOUTS = {
    "fixed": (4, [0, 1, 2, 3]),
    "group": ("g", [2, 0, 1]),
    "flattened": ({"product": ["g", 2]}, [4, 5, 0, 1, 2, 3]),
    "channels_last": ({"product": [2, "g"]}, [2, 0, 1, 5, 3, 4]),
    "two_groups": ({"product": ["h", "g"]}, [5, 3, 4, 2, 0, 1]),
    "same_group_twice": ({"product": ["h", "h"]}, [3, 2, 1, 0]),
    "concatenated": ({"concat": ["h", 2, "g"]}, [1, 0, 2, 3, 6, 4, 5]),
    "products_in_a_row": (
        {"concat": [{"product": ["h", 2]}, {"product": [2, "h"]}]},
        [2, 3, 0, 1, 5, 4, 7, 6],
    ),
    "concatenation_in_each_unit": (
        {"product": ["h", {"concat": [1, "h"]}]},
        [3, 5, 4, 0, 2, 1],
    ),
    "concatenations_in_a_product": (
        {"product": [{"concat": ["h", 1]}, {"concat": [1, "h"]}]},
        [3, 5, 4, 0, 2, 1, 6, 8, 7],
    ),
    "concatenation_before_a_factor": (
        {"product": ["h", {"concat": [1, {"product": ["h", 2]}]}, 1]},
        [5, 8, 9, 6, 7, 0, 3, 4, 1, 2],
    ),
    "one_unit": ("one", [0]),
    "empty": (0, []),
}


@pytest.mark.parametrize(("data", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_units_of_a_layout_move(data: object, expected: list[int]) -> None:
    axis = Axis.from_json(data, SIZES)
    groups = {name: Group(name, size) for name, size in SIZES.items()}
    moved = move(torch.arange(axis.size)[None], TensorSpec((axis,)), groups, one_of_each(PERMS))
    assert moved[0].tolist() == expected
    assert axis.size == len(expected)


@given(tensor=tensor_specs(), data=st.data())
def test_units_move_as_entry_by_entry(tensor: TensorSpec, data: st.DataObject) -> None:
    spec = PermutationSpec(GROUPS, {"w": tensor})
    permutation = data.draw(permutations(spec))
    weight = torch.arange(1.0, 1 + math.prod(tensor.shape)).reshape(tensor.shape)
    expected = moved_array(weight.numpy(), tensor, GROUPS, symmetry_of(permutation))
    moved = permutation.apply({"w": weight})["w"]
    assert moved.tolist() == expected.tolist()
    assert sorted(moved.abs().flatten().tolist()) == weight.flatten().tolist()


@given(tensor=tensor_specs(), seed=seeds)
def test_entries_are_multiplied_by_powers_of_scales(tensor: TensorSpec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = PermutationSpec(GROUPS, {"w": tensor})
    scales = {
        name: torch.rand(spec.units(name), generator=generator, dtype=torch.float64) + 0.5
        for name, group in GROUPS.items()
        if group.signed
    }
    weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    still = symmetry_of(Permutation.identity(spec)).perms
    arrays = {name: scale.numpy() for name, scale in scales.items()}
    expected = moved_array(weight.numpy(), tensor, GROUPS, Symmetry(still, arrays))
    multiplied = multiply(weight[None], tensor, GROUPS, one_of_each(scales))[0]
    assert torch.allclose(multiplied, torch.from_numpy(expected), rtol=1e-14)


@given(axis=axes)
def test_axis_survives_json(axis: Axis) -> None:
    again = Axis.from_json(json.loads(json.dumps(axis.to_json())), SIZES)
    assert again == axis


@pytest.mark.parametrize("name", PAIRS)
def test_spec_survives_json(name: str) -> None:
    spec = replace(pair(name).spec, ties={"alias": next(iter(pair(name).spec.tensors))})
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec
    assert list(again.groups) == list(spec.groups)
    assert list(again.tensors) == list(spec.tensors)


def nested(depth: int) -> object:
    """Return an axis of so many concatenations inside each other."""
    return {"product": [2, {"concat": [1, nested(depth - 1)]}]} if depth else "g"


VALID = {
    "format": "gpu-align/spec",
    "version": 1,
    "groups": {"g": 3},
    "tensors": {"w": ["g", 2]},
}
CHILD = {"g": 3, "c": {"size": 2, "parent": "g"}}
MALFORMED = {
    "other_format": ({"format": "else"}, "format"),
    "other_version": ({"version": 99}, "version"),
    "no_groups": ({"groups": None}, "groups"),
    "groups_as_list": ({"groups": ["g"]}, "groups"),
    "size_zero": ({"groups": {"g": 0}}, "positive"),
    "size_bool": ({"groups": {"g": True}}, "positive"),
    "size_fraction": ({"groups": {"g": 2.5}}, "positive"),
    "tensors_as_list": ({"tensors": []}, "tensors"),
    "axes_as_number": ({"tensors": {"w": 3}}, "list of axes"),
    "unknown_group": ({"tensors": {"w": ["nope"]}}, "nope"),
    "axis_bool": ({"tensors": {"w": [True]}}, "expected an axis"),
    "axis_null": ({"tensors": {"w": [None]}}, "expected an axis"),
    "axis_fraction": ({"tensors": {"w": [1.5]}}, "expected an axis"),
    "axis_negative": ({"tensors": {"w": [-1]}}, "from 0 to"),
    "axis_two_kinds": ({"tensors": {"w": [{"product": [1], "concat": [1]}]}}, "expected an axis"),
    "nested_product": ({"tensors": {"w": [{"product": [{"product": [2]}]}]}}, "expected an axis"),
    "product_of_number": ({"tensors": {"w": [{"product": 2}]}}, "expected an axis"),
    "concat_in_concat": ({"tensors": {"w": [{"concat": [{"concat": [2]}]}]}}, "expected an axis"),
    "too_deep": ({"tensors": {"w": [nested(9)]}}, "at most 8 concatenations"),
    "tie_to_nothing": ({"ties": {"v": "nope"}}, "nope"),
    "tie_to_list": ({"ties": {"v": ["w"]}}, "ties"),
    "ties_as_list": ({"ties": ["v"]}, "ties"),
    "buffers_as_dict": ({"buffers": {"w": 1}}, "buffers"),
    "buffers_of_lists": ({"buffers": [["w"]]}, "buffers"),
    "pin_too_short": ({"pins": [["w", 0]]}, "pin"),
    "unknown_parent": ({"groups": {"g": 3, "c": {"size": 2, "parent": "nope"}}}, "nope"),
    "grandparent": (
        {"groups": {"g": 3, "c": {"size": 2, "parent": "g"}, "d": {"size": 2, "parent": "c"}}},
        "one level",
    ),
    "own_parent": ({"groups": {"g": {"size": 3, "parent": "g"}}}, "parent"),
    "child_alone": ({"groups": CHILD, "tensors": {"w": ["c", 2]}}, "without its parent"),
    "child_in_another_segment": (
        {"groups": CHILD, "tensors": {"w": [{"concat": ["g", "c"]}]}},
        "without its parent",
    ),
    "parent_twice": (
        {"groups": CHILD, "tensors": {"w": [{"product": ["g", "c"]}, "g"]}},
        "exactly once",
    ),
    "caret_in_a_name": ({"groups": {"g": 3, "h^1": 2}}, r"h\^1"),
    "power_of_a_plain_group": ({"tensors": {"w": ["g^1", 2]}}, "neither signed nor scaled"),
    "power_two": ({"tensors": {"w": ["g^2"]}}, "power"),
    "power_of_nothing": ({"tensors": {"w": ["g^x"]}}, "power"),
    "signed_as_number": ({"groups": {"g": {"size": 3, "signed": 1}}}, "signed"),
    "parent_as_number": ({"groups": {"g": {"size": 3, "parent": 1}}}, "parent"),
    "group_without_size": ({"groups": {"g": {"signed": True}}}, "positive"),
    "fixed_as_number": ({"groups": {"g": {"size": 3, "fixed": 1}}}, "fixed"),
    "fixed_child": (
        {"groups": CHILD | {"c": {"size": 2, "parent": "g", "fixed": True}}},
        "'c' is fixed",
    ),
    "fixed_and_signed": (
        {"groups": {"g": {"size": 3, "fixed": True, "signed": True}}},
        "'g' is fixed",
    ),
    "unknown_word": ({"groups": {"g": {"size": 3, "sign": True}}}, "sign"),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_spec_is_refused(change: dict[str, object], message: str) -> None:
    PermutationSpec.from_json(json.dumps(VALID))
    with pytest.raises(SpecError, match=message):
        PermutationSpec.from_json(json.dumps(VALID | change))


def test_parents_signs_and_powers_are_read() -> None:
    groups = {
        "g": {"size": 3, "scaled": True},
        "c": {"size": 2, "parent": "g", "signed": True},
    }
    tensors = {"w": [{"product": ["g^1", "c^-1"]}, {"concat": [2, "c"]}]}
    document = VALID | {"version": 2, "groups": groups, "tensors": tensors}
    spec = PermutationSpec.from_json(json.dumps(document))
    assert spec.groups["g"] == Group("g", 3, scaled=True)
    assert spec.groups["c"] == Group("c", 2, parent="g", signed=True)
    rows, columns = spec.tensors["w"].axes
    assert rows.segments == ((Units(3, "g", 1), Units(2, "c", -1)),)
    assert columns.segments == ((Fixed(2),), (Units(2, "c"),))
    assert spec.units("c") == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "{}"])
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        PermutationSpec.from_json(text)


def test_inconsistent_spec_is_refused() -> None:
    three = TensorSpec((Axis.of_group("g", 3),))
    with pytest.raises(SpecError, match="unknown group 'g'"):
        PermutationSpec({}, {"w": three})
    with pytest.raises(SpecError, match="3 units"):
        PermutationSpec({"g": Group("g", 4)}, {"w": three})


@pytest.mark.parametrize("sizes", [[1], [2], [7, 1, 5], [12, 12], [63]], ids=str)
def test_count_of_symmetries_is_exact(sizes: list[int]) -> None:
    spec = PermutationSpec({str(n): Group(str(n), size) for n, size in enumerate(sizes)}, {})
    exact = math.log10(math.prod(math.factorial(size) for size in sizes))
    assert spec.log10_symmetries == pytest.approx(exact, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_count_of_symmetries_without_signs(name: str) -> None:
    spec = pair(name).spec
    count = sum(1 for _ in all_symmetries(spec, signs=False))
    assert 10**spec.log10_symmetries == pytest.approx(count)


def test_count_of_symmetries_of_a_wide_mlp() -> None:
    spec = chain_spec(mlp([784, 512, 512, 512, 10]).state_dict())
    assert round(spec.log10_symmetries, 1) == 3499.6


def test_members_and_groups() -> None:
    spec = chain_spec(mlp([3, 4, 5, 2]).state_dict())
    assert spec.perm_to_axes("0") == (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
    with pytest.warns(DeprecationWarning, match="perm_to_axes"):
        assert spec.members("0") == spec.perm_to_axes("0")
    assert spec.tensors["2.weight"].groups == ("2", "0")
    assert spec.tensors["2.weight"].shape == (5, 4)
    assert Axis(((Fixed(2), Units(3, "g")), (Units(3, "g"),))).groups == ("g",)


def test_validation_reports_every_problem_at_once() -> None:
    state = CNN(2, hidden=3, side=8).state_dict()
    spec = chain_spec(state)
    spec.validate(state)
    bad = {name: tensor for name, tensor in state.items() if name != "c2.bias"}
    bad |= {"c1.bias": torch.zeros(7), "extra": torch.zeros(1)}
    with pytest.raises(SpecError) as caught:
        spec.validate(bad, "source")
    for part in (
        "source",
        "missing: 'c2.bias'",
        "'c1.bias' has shape [7], expected [2]",
        "'extra'",
    ):
        assert part in str(caught.value)
