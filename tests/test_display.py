"""What results, permutations and specs show of themselves, and what is natural to do with them."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from networks import mlp, model_of, pair
from oracles import assert_same_function

import gpu_align
from gpu_align import (
    AlignmentFailure,
    AlignmentResult,
    CoordinateDescent,
    InputError,
    Permutation,
    PermutationSpec,
    SpecError,
    align,
    write_report,
)

FAST = CoordinateDescent(order="forward")
LONGEST = 300
"""Characters of a `repr`: a few lines of a terminal."""


@pytest.fixture(scope="module")
def result() -> AlignmentResult:
    source, inputs = model_of("cnn", seed=1)
    target, _ = model_of("cnn", seed=2)
    return align(source, target, example_inputs=inputs, search=FAST)


def test_reprs_are_short(result: AlignmentResult) -> None:
    for shown in (result, result.permutation, result.permutation.spec):
        assert repr(shown).startswith(f"{type(shown).__name__}(")
        assert len(repr(shown)) <= LONGEST
        assert "\n" not in repr(shown)
    assert f"{result.distance:.6g}" in repr(result)
    assert f"{result.distance_before:.6g}" in repr(result)
    moved = sum(result.permutation.moved().values())
    assert f"{moved} of {sum(len(perm) for perm in result.permutation.perms.values())}" in repr(
        result.permutation
    )
    spec = result.permutation.spec
    assert f"{len(spec.groups)} groups of " in repr(spec)
    assert f"10^{spec.log10_symmetries:.1f}" in repr(spec)


def test_the_repr_of_a_failure_is_one_line() -> None:
    state = mlp([3, 4, 2]).state_dict()
    bad = {name + "x" * 500: torch.zeros(3) for name in state}
    (failure,) = align([bad], state, search=FAST)
    assert isinstance(failure, AlignmentFailure)
    assert len(repr(failure)) <= LONGEST + 100
    assert "\n" not in repr(failure)


def test_the_repr_does_not_grow_with_the_network() -> None:
    for units in (4, 400):
        state = mlp([3, units, units, 2]).state_dict()
        found = align(state, state)
        for shown in (found, found.permutation, found.permutation.spec):
            assert len(repr(shown)) <= LONGEST


@pytest.mark.parametrize("name", ["cnn", "signed_heads"])
def test_notebooks_get_a_table(name: str) -> None:
    networks = pair(name)
    spec = networks.spec
    marked = PermutationSpec(spec.groups, spec.tensors, origin="<script>&")
    found = align(networks.source, networks.target, spec=spec, search=FAST)
    for shown in (found, found.permutation, marked):
        page = shown._repr_html_()
        assert page.count("<table>") == page.count("</table>") == 1
        assert "<tr>" in page
        assert "<script>" not in page
        assert len(page) < 10_000


def test_the_summary_says_what_is_known(result: AlignmentResult) -> None:
    text = result.summary()
    for value in (result.distance_before, result.distance, result.lower_bound):
        assert f"{value:.6g}" in text
    assert "preserved: outputs differ by" in text
    assert result.search in text
    assert result.status.value in text
    assert all(group.name in text for group in result.groups)
    assert len(text.splitlines()) < 15


@pytest.mark.usefixtures("no_drawing")
def test_the_report_is_that_of_the_function(result: AlignmentResult, tmp_path: Path) -> None:
    result.write_report(tmp_path / "method.html")
    write_report(result, tmp_path / "function.html")
    pages = [(tmp_path / f"{name}.html").read_bytes() for name in ("method", "function")]
    assert pages[0] == pages[1]
    with pytest.raises(InputError, match="does not exist"):
        result.write_report(tmp_path / "no" / "page.html")


def test_the_version_is_that_of_the_package() -> None:
    assert gpu_align.__version__ == importlib.metadata.version("gpu-align")


def test_a_permutation_is_read_like_a_mapping(result: AlignmentResult) -> None:
    permutation = result.permutation
    assert list(permutation) == list(permutation.spec.groups)
    assert len(permutation) == len(permutation.perms)
    for group in permutation:
        assert group in permutation
        assert permutation[group] is permutation.perms[group]
    assert dict(permutation) == dict(permutation.perms)
    with pytest.raises(KeyError, match="no group 'nope'; the groups are"):
        permutation["nope"]


@pytest.mark.parametrize("name", ["cnn", "groupnorm"])
def test_apply_reorders_a_module_in_place(name: str, generator: torch.Generator) -> None:
    model, inputs = model_of(name)
    spec = gpu_align.discover(model, inputs)
    permutation = Permutation.random(spec, generator=generator)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    expected = permutation.apply(before)
    assert permutation.apply(model) is model
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in expected.items())
    assert_same_function(model, inputs, before, dict(after))
    assert permutation.inverse().apply(model) is model
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(SpecError):
        permutation.apply(mlp([3, 4, 2]))
