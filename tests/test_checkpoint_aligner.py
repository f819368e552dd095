"""CheckpointAligner and data sets of aligned networks: alignment and augmentation in pipelines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from zoos import State, mlp, planted, stack, state, write_folder

from gpu_align import AlignedNetworks, CheckpointAligner, InputError, align_zoo, chain_spec

REFERENCE = state(0, 5, 6, 2)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_networks_come_back_in_the_form_in_which_they_were_given() -> None:
    near, moved = planted(4, REFERENCE)
    aligner = CheckpointAligner(REFERENCE)
    assert same(aligner(moved[1]), near[1])
    assert all(same(one, two) for one, two in zip(aligner(moved), near, strict=True))
    assert same(aligner(stack(moved)), stack(near))
    assert aligner([]) == []
    for permutation, one, expected in zip(aligner.permutations(moved), moved, near, strict=True):
        assert same(permutation.apply(one), expected)


def test_names_of_wrappers_are_kept() -> None:
    near, moved = planted(2, REFERENCE)
    wrapped = {f"module.{name}": tensor for name, tensor in moved[0].items()}
    found = CheckpointAligner(REFERENCE)(wrapped)
    assert same(found, {f"module.{name}": tensor for name, tensor in near[0].items()})


def test_symmetries_of_a_module_are_found_once() -> None:
    model = mlp(5, 6, 2)
    aligner = CheckpointAligner(model, example_inputs=torch.randn(4, 5))
    assert all(group.signed for group in aligner.spec.groups.values())
    other = {name: t.detach() for name, t in mlp(5, 6, 2).state_dict().items()}
    x = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        before = torch.func.functional_call(model.double(), _double(other), (x,))
        after = torch.func.functional_call(model, _double(aligner(other)), (x,))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-12)


def _double(one: State) -> State:
    return {name: tensor.double() for name, tensor in one.items()}


def test_random_elements_keep_the_function_and_are_undone() -> None:
    near, _ = planted(1, REFERENCE)
    aligner = CheckpointAligner(REFERENCE)
    elements = aligner.random_elements(5, seed=3)
    drawn = [element.apply(near[0]) for element in elements]
    assert sum(same(one, near[0]) for one in drawn) <= 1
    assert all(same(one, near[0]) for one in aligner(drawn))
    again = aligner.random_elements(5, seed=3)
    assert all(torch.equal(a["0"], b["0"]) for a, b in zip(elements, again, strict=True))


def test_what_cannot_be_aligned_is_named() -> None:
    aligner = CheckpointAligner(REFERENCE)
    bad = {**REFERENCE, "0.bias": torch.full((6,), float("nan"))}
    with pytest.raises(InputError, match=r"(?s)network 1: .*NaN"):
        aligner([REFERENCE, bad])
    with pytest.raises(InputError, match="does not fit"):
        aligner(state(0, 5, 7, 2))
    with pytest.raises(InputError, match="read files by load_checkpoint"):
        aligner("path.pt")  # type: ignore[call-overload]


@pytest.mark.parametrize("workers", [0, 1])
def test_aligned_networks_are_a_data_set(tmp_path: Path, workers: int) -> None:
    near, moved = planted(7, REFERENCE)
    labels = torch.arange(7) % 3
    held = {f"weight:{name}": tensor for name, tensor in stack(moved).items()}
    save_file({**held, "fact:label": labels}, tmp_path / "zoo.safetensors")
    align_zoo(tmp_path / "zoo.safetensors", REFERENCE, tmp_path / "out", workers=1, shard=3)
    data = AlignedNetworks(tmp_path / "out", facts=["label"])
    assert len(data) == 7
    assert data.names[4] == "zoo.safetensors[4]"
    first, facts = data[5]
    assert same(first, near[5])
    assert facts == {"label": 2}
    loader = DataLoader(data, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert torch.equal(torch.cat([facts["label"] for _, facts in batches]), labels)
    joined = {name: torch.cat([b[0][name] for b in batches]) for name in REFERENCE}
    assert same(joined, stack(near))


def test_items_may_be_augmented(tmp_path: Path) -> None:
    near, moved = planted(3, REFERENCE)
    align_zoo(moved, REFERENCE, tmp_path / "out", workers=1)
    spec = chain_spec(REFERENCE)
    aligner = CheckpointAligner(REFERENCE, spec)
    [element] = aligner.random_elements(1, seed=1)
    data = AlignedNetworks(tmp_path / "out", transform=element.apply)
    assert same(data[2], element.apply(near[2]))


def test_a_data_set_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    _, moved = planted(2, REFERENCE)
    other = state(0, 4, 5, 2)
    align_zoo([*moved, other], [REFERENCE, other], tmp_path / "two", workers=1)
    with pytest.raises(InputError, match="one of 50p, 37p"):
        AlignedNetworks(tmp_path / "two")
    with pytest.raises(InputError, match="a family among"):
        AlignedNetworks(tmp_path / "two", family="other")
    assert len(AlignedNetworks(tmp_path / "two", family="37p")) == 1
    with pytest.raises(InputError, match="no fact 'label'"):
        AlignedNetworks(tmp_path / "two", family="37p", facts=["label"])
    source = write_folder(tmp_path / "zoo", moved)
    align_zoo(source, REFERENCE, tmp_path / "same", workers=1, layout="same")
    with pytest.raises(InputError, match='layout="shards"'):
        AlignedNetworks(tmp_path / "same")
