"""Permutation: the group laws, ties, dtypes, and files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PAIRS, Pair, mlp, pair
from oracles import assert_same_function, objective, permuted, to_arrays
from safetensors.torch import save_file
from strategies import permutations, tiny_pairs

from gpu_align import CheckpointError, InputError, Permutation, SpecError, chain_spec


def assert_states_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor, b[name]), name


def assert_permutations_equal(a: Permutation, b: Permutation) -> None:
    assert list(a.perms) == list(b.perms)
    assert all(torch.equal(perm, b.perms[name]) for name, perm in a.perms.items())


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
    expected = permuted(networks.spec, to_arrays(p.perms), networks.source)
    moved = p.apply(networks.source)
    for name, array in expected.items():
        assert (moved[name].numpy() == array).all()


@given(data=st.data(), networks=tiny_pairs(hidden=3))
@settings(max_examples=50)
def test_group_laws(data: st.DataObject, networks: tuple) -> None:
    spec, source, target = networks
    p, q, r = (data.draw(permutations(spec)) for _ in range(3))
    assert_permutations_equal(p.compose(q).compose(r), p.compose(q.compose(r)))
    assert_permutations_equal(p.compose(q).inverse(), q.inverse().compose(p.inverse()))
    # A reordering of both networks is an isometry: it changes no distance.
    arrays = {name: perm.numpy() for name, perm in p.perms.items()}
    identity = to_arrays(Permutation.identity(spec).perms)
    moved = objective(spec, identity, q.apply(p.apply(source)), q.apply(target))
    assert moved == pytest.approx(objective(spec, arrays, source, target), abs=1e-9)


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
    with pytest.raises(SpecError, match="composed"):
        Permutation.identity(spec).compose(other)


def test_file_round_trip(networks: Pair, tmp_path: Path, generator: torch.Generator) -> None:
    p = Permutation.random(networks.spec, generator=generator)
    path = tmp_path / "permutation.safetensors"
    p.save(path)
    again = Permutation.load(path)
    assert again.spec == p.spec
    assert {n: v.tolist() for n, v in again.perms.items()} == {
        n: v.tolist() for n, v in p.perms.items()
    }
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
