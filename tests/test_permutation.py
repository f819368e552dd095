"""Permutation: the group laws, ties, dtypes, and files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PAIRS, Pair, mlp, pair, random_pair
from oracles import assert_same_function, objective, permuted, symmetry_of
from safetensors.torch import save_file
from scipy.stats import chisquare
from strategies import GROUPS, permutations, tensor_specs

from gpu_align import (
    CheckpointError,
    InputError,
    Permutation,
    PermutationSpec,
    SpecError,
    chain_spec,
)
from gpu_align._symmetry import TensorSpec


def assert_states_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor, b[name]), name


def assert_permutations_equal(a: Permutation, b: Permutation) -> None:
    assert set(a.perms) == set(b.perms)
    for name, perm in a.perms.items():
        assert torch.equal(perm, b.perms[name])
        ones = torch.ones_like(perm)
        assert torch.equal(a.signs.get(name, ones), b.signs.get(name, ones))


@pytest.fixture(params=PAIRS)
def networks(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def test_identity_moves_nothing(networks: Pair) -> None:
    identity = Permutation.identity(networks.spec)
    assert_states_equal(identity.apply(networks.source), networks.source)
    assert set(identity.moved().values()) <= {0}


def test_inverse_undoes(networks: Pair, generator: torch.Generator) -> None:
    p = Permutation.random(networks.spec, generator=generator)
    assert_states_equal(p.inverse().apply(p.apply(networks.source)), networks.source)
    identity = Permutation.identity(networks.spec)
    assert_permutations_equal(p.compose(p.inverse()), identity)
    assert_permutations_equal(p.inverse().compose(p), identity)


def test_compose_is_one_after_the_other(networks: Pair, generator: torch.Generator) -> None:
    p, q = (Permutation.random(networks.spec, generator=generator) for _ in range(2))
    assert_states_equal(p.compose(q).apply(networks.source), p.apply(q.apply(networks.source)))


def test_apply_equals_numpy(networks: Pair, generator: torch.Generator) -> None:
    p = Permutation.random(networks.spec, generator=generator)
    expected = permuted(networks.spec, symmetry_of(p), networks.source)
    moved = p.apply(networks.source)
    for name, array in expected.items():
        assert (moved[name].numpy() == array).all()


@given(data=st.data(), tensor=tensor_specs())
@settings(max_examples=15)
def test_group_laws(data: st.DataObject, tensor: TensorSpec) -> None:
    spec = PermutationSpec(GROUPS, {"w": tensor})
    p, q, r = (data.draw(permutations(spec)) for _ in range(3))
    identity = Permutation.identity(spec)
    assert_permutations_equal(p.compose(q).compose(r), p.compose(q.compose(r)))
    assert_permutations_equal(p.compose(q).inverse(), q.inverse().compose(p.inverse()))
    assert_permutations_equal(p.compose(p.inverse()), identity)
    assert_permutations_equal(identity.compose(p), p)
    # A symmetry of both networks is an isometry: it changes no distance.
    given = random_pair(spec)
    both = q.apply(p.apply(given.source)), q.apply(given.target)
    moved = objective(spec, symmetry_of(identity), *both)
    alone = objective(spec, symmetry_of(p), given.source, given.target)
    assert moved == pytest.approx(alone, abs=1e-9)


def test_convention_puts_unit_perm_i_at_place_i() -> None:
    state = mlp([1, 3, 1]).state_dict()
    state["0.bias"] = torch.tensor([10.0, 20.0, 30.0])
    p = Permutation(chain_spec(state), {"0": torch.tensor([2, 0, 1])})
    assert p.apply(state)["0.bias"].tolist() == [30.0, 10.0, 20.0]
    assert p.moved() == {"0": 3}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8], ids=str
)
def test_dtypes_and_inputs_are_kept(dtype: torch.dtype, generator: torch.Generator) -> None:
    state = {name: (9 * t).to(dtype) for name, t in mlp([3, 4, 2]).state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    moved = Permutation.random(chain_spec(state), generator=generator).apply(state)
    assert {tensor.dtype for tensor in moved.values()} == {dtype}
    assert_states_equal(state, before)


def test_random_is_reproducible_and_leaves_the_global_state() -> None:
    spec = chain_spec(mlp([3, 63, 2]).state_dict())
    state = torch.get_rng_state()
    first, same = (
        Permutation.random(spec, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    other = Permutation.random(spec, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_permutations_equal(first, same)
    assert not torch.equal(first.perms["0"], other.perms["0"])


def test_shared_memory_stays_shared(generator: torch.Generator) -> None:
    model = mlp([3, 4, 2])
    state = model.state_dict()
    spec = replace(chain_spec(state), ties={"alias": "0.weight"})
    state["alias"] = state["0.weight"]
    moved = Permutation.random(spec, generator=generator).apply(state)
    assert moved["alias"].data_ptr() == moved["0.weight"].data_ptr()
    del state["alias"]
    assert "alias" not in Permutation.random(spec, generator=generator).apply(state)


def test_names_that_share_memory_but_no_group_are_permuted_apart(
    generator: torch.Generator,
) -> None:
    model = mlp([3, 4, 4, 2])
    bias = torch.arange(4.0)
    state = {**model.state_dict(), "0.bias": bias, "2.bias": bias}
    p = Permutation.random(chain_spec(state), generator=generator)
    assert p.perms["0"].tolist() != p.perms["2"].tolist()
    assert_same_function(model, torch.randn(5, 3), state, p.apply(state))


def test_apply_refuses_other_networks() -> None:
    p = Permutation.identity(chain_spec(mlp([3, 4, 2]).state_dict()))
    with pytest.raises(SpecError, match=r"0\.weight"):
        p.apply(mlp([3, 5, 2]).state_dict())
    with pytest.raises(SpecError, match=r"missing: '2\.bias'"):
        p.apply({k: t for k, t in mlp([3, 4, 2]).state_dict().items() if k != "2.bias"})


def test_moved_counts_units_that_change_place_or_sign() -> None:
    spec = pair("signed").spec
    perms = {"a": torch.tensor([1, 0, 2]), "b": torch.tensor([0, 1])}
    signs = {"a": torch.tensor([1, 1, -1])}
    assert Permutation(spec, perms, signs).moved() == {"a": 3, "b": 0}


def test_random_draws_all_symmetries_alike(generator: torch.Generator) -> None:
    spec = pair("signed_heads").spec
    draws = [Permutation.random(spec, generator=generator) for _ in range(2500)]
    seen = Counter(
        (tuple(p.perms["head"].tolist()), tuple((p.signs["v"] * (1 + p.perms["v"])).tolist()))
        for p in draws
    )
    assert len(seen) == 2 * 2 * 2 * 2**4
    assert chisquare(list(seen.values())).pvalue > 1e-3


WRONG_VECTORS = {
    "repeated": torch.tensor([0, 0, 1]),
    "too_short": torch.tensor([0, 1]),
    "too_long": torch.tensor([0, 1, 2, 3]),
    "negative": torch.tensor([-1, 0, 1]),
    "floating": torch.tensor([0.0, 1.0, 2.0]),
    "int32": torch.tensor([0, 1, 2], dtype=torch.int32),
    "matrix": torch.tensor([[0, 1, 2]]),
}


@pytest.mark.parametrize("vector", WRONG_VECTORS.values(), ids=WRONG_VECTORS)
def test_vectors_that_are_no_permutation_are_refused(vector: torch.Tensor) -> None:
    spec = chain_spec(mlp([2, 3, 2]).state_dict())
    with pytest.raises(SpecError, match="group '0'"):
        Permutation(spec, {"0": vector})


def test_groups_must_agree() -> None:
    spec = chain_spec(mlp([2, 3, 2]).state_dict())
    other = Permutation.identity(chain_spec(mlp([2, 4, 2]).state_dict()))
    with pytest.raises(SpecError, match="groups"):
        Permutation(spec, {"0": torch.arange(3), "extra": torch.arange(3)})
    with pytest.raises(SpecError, match="groups"):
        Permutation(spec, {})
    with pytest.raises(SpecError, match="compose permutations of one spec"):
        Permutation.identity(spec).compose(other)


FAMILY = {"head": [1, 0], "qk": [2, 3, 0, 1], "v": [3, 2, 0, 1], "e": [0, 1, 2]}
WRONG_FAMILIES = {
    "unit_leaves_its_parent": ({"qk": [0, 2, 1, 3]}, {}, "group 'qk'.*parent 'head'"),
    "children_stay": ({"v": [0, 1, 2, 3]}, {}, "group 'v'.*parent 'head'"),
    "one_parent_only": ({"qk": [0, 1]}, {}, "group 'qk'"),
    "signs_of_a_plain_group": ({}, {"e": [1, 1, -1]}, "'e'.*not a signed group"),
    "signs_of_nothing": ({}, {"nope": [1]}, "'nope'.*not a signed group"),
    "sign_of_zero": ({}, {"v": [1, 0, 1, 1]}, "1 or -1"),
    "sign_of_two": ({}, {"v": [1, 2, 1, 1]}, "1 or -1"),
    "signs_of_one_parent": ({}, {"v": [1, -1]}, "each unit"),
}


@pytest.mark.parametrize(("perms", "signs", "message"), WRONG_FAMILIES.values(), ids=WRONG_FAMILIES)
def test_vectors_that_break_a_family_are_refused(
    perms: dict[str, list[int]], signs: dict[str, list[int]], message: str
) -> None:
    def tensors(vectors: dict[str, list[int]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(vector) for name, vector in vectors.items()}

    spec = pair("signed_heads").spec
    Permutation(spec, tensors(FAMILY), tensors({"v": [1, -1, 1, 1]}))
    with pytest.raises(SpecError, match=message):
        Permutation(spec, tensors(FAMILY | perms), tensors(signs))


def test_units_of_a_fixed_group_stay() -> None:
    spec = pair("fixed_heads").spec
    still = Permutation.identity(spec)
    assert still.moved() == dict.fromkeys(spec.groups, 0)
    Permutation(spec, {**still.perms, "qk": torch.tensor([1, 0, 2, 3])})
    swapped = {"head": [1, 0], "qk": [2, 3, 0, 1], "v": [2, 3, 0, 1]}
    with pytest.raises(SpecError, match="group 'head' is fixed"):
        Permutation(spec, still.perms | {n: torch.tensor(perm) for n, perm in swapped.items()})


def test_file_round_trip(networks: Pair, tmp_path: Path, generator: torch.Generator) -> None:
    p = Permutation.random(networks.spec, generator=generator)
    path = tmp_path / "permutation.safetensors"
    p.save(path)
    again = Permutation.load(path)
    assert again.spec == p.spec
    assert_permutations_equal(again, Permutation(again.spec, p.perms, p.signs))
    assert set(again.signs) == {n for n, group in p.spec.groups.items() if group.signed}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.safetensors"
    spec = chain_spec(mlp([2, 3, 2]).state_dict())
    if kind == "text":
        path.write_text("not a permutation")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        Permutation.identity(spec).save(path)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "checkpoint":
        save_file(mlp([2, 3, 2]).state_dict(), path)
    elif kind == "bad_spec":
        save_file({"0": torch.arange(3)}, path, metadata={"gpu_align_spec": "{}"})
    elif kind == "bad_vector":
        save_file({"0": torch.zeros(3)}, path, metadata={"gpu_align_spec": spec.to_json()})
    return path


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        *((kind, CheckpointError) for kind in ("missing", "text", "empty", "folder", "truncated")),
        ("checkpoint", CheckpointError),
        ("bad_spec", SpecError),
        ("bad_vector", SpecError),
    ],
)
def test_bad_files_are_refused(kind: str, error: type[InputError], tmp_path: Path) -> None:
    with pytest.raises(error):
        Permutation.load(bad_file(kind, tmp_path))


def test_save_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Permutation.identity(chain_spec(mlp([2, 3, 2]).state_dict())).save(tmp_path / "no" / "p")
