"""Defaults that a caller has set for torch: a device, inference, autocast, a dtype."""

import ast
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from marks import each_once, slow
from networks import mlp, model_of, pair
from torch import Tensor
from torch._subclasses import FakeTensorMode

from gpu_align import (
    AlignmentResult,
    CoordinateDescent,
    InputError,
    Permutation,
    TaskLoss,
    align,
    canonicalize,
    chain_spec,
    discover,
    load_checkpoint,
    save_checkpoint,
)
from gpu_align._search import SEARCHES, Search
from gpu_align.learn import Aligner

ROOTS = (Path(__file__).parents[1] / "gpu_align", Path(__file__).parents[1] / "kernels" / "src")
LAYERS = ("_adapt.py", "_layers.py", "_linear.py", "_narrow.py", "_readers.py")
MAKERS = (
    *("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
)


def test_every_tensor_is_made_on_a_named_device() -> None:
    """Without one it would lie where the caller's `torch.device` or default device says.

    That is where the parameters of layers belong, as those of torch's own do.
    """
    nameless = [
        f"{path}:{node.lineno}"
        for root in ROOTS
        for path in sorted(root.rglob("*.py"))
        if not (path.parent.name == "learn" and path.name in LAYERS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in MAKERS
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]
    assert nameless == []


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "device": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": default_device,
    "dtype": default_dtype,
}


def networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [mlp([4, 9, 8, 3]).float() for _ in range(2)]


FEWER: dict[str, dict[str, int]] = {
    "annealing": {"starts": 2, "steps": 5},
    "recombination": {"population": 4, "children": 4, "generations": 1},
}


def search_of(name: str) -> Search | None:
    """Return a search; one that follows a loss takes a few steps on drawn examples."""
    entry = SEARCHES[name]
    if entry.needs_aligner:
        return entry.make(Aligner(chain_spec(networks()[0].state_dict())))
    if not entry.needs_data:
        return replace(entry.make(), **FEWER.get(name, {}))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float32, device="cpu")
    y = torch.randint(3, (40,), generator=generator, device="cpu")
    return replace(entry.make(TaskLoss(networks()[0], (x, y))), steps=3)


@functools.cache
def aligned(name: str) -> AlignmentResult:
    """Return what a search finds outside of all contexts."""
    source, target = (network.state_dict() for network in networks())
    return align(source, target, search=search_of(name))


@pytest.mark.parametrize(
    ("name", "context"), each_once([name for name in SEARCHES if name != "portfolio"], CONTEXTS)
)
def test_searches_do_the_same_within(name: str, context: str) -> None:
    source, target = (network.state_dict() for network in networks())
    search, expected = search_of(name), aligned(name)
    if SEARCHES[name].needs_data and context == "inference":
        with CONTEXTS[context](), pytest.raises(InputError, match="takes gradients"):
            align(source, target, search=search)
        return
    with CONTEXTS[context]():
        found = align(source, target, search=search)
    assert found.distance == expected.distance
    assert found.lower_bound == expected.lower_bound
    for key, tensor in found.state_dict.items():
        assert torch.equal(tensor, expected.state_dict[key])
        assert tensor.dtype == expected.state_dict[key].dtype


def outcomes(both: list[torch.nn.Module], folder: Path) -> Iterator[dict[str, Tensor]]:
    """Yield what comes of files, modules, tracing, one form and permutations."""
    source, target = both
    inputs, fast = (
        torch.ones(2, 4, dtype=torch.float32, device="cpu"),
        CoordinateDescent(order="forward"),
    )
    for name in ("a.pt", "a.safetensors"):
        save_checkpoint(folder / name, source.state_dict())
        yield dict(load_checkpoint(folder / name).tensors)
        yield dict(align(folder / name, target.state_dict(), search=fast).state_dict)
    for result in align([source, target], target, example_inputs=inputs, search=fast):
        assert result.unwrap().function_preserved
        yield dict(result.state_dict)
    yield canonicalize(source, example_inputs=inputs)
    spec = chain_spec(source.state_dict())
    generator = torch.Generator().manual_seed(0)
    permutation = Permutation.random(spec, generator=generator)
    assert permutation.moved() == permutation.inverse().moved()
    yield permutation.apply(source.state_dict())
    yield Permutation.identity(spec).apply(source.state_dict())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What comes of them outside of all contexts."""
    return list(outcomes(networks(), tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("context", slow(CONTEXTS, but=("device", "inference", "dtype")))
def test_everything_else_does_the_same_within(
    context: str,
    plain: list[dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    both = networks()
    with CONTEXTS[context]():
        found = list(outcomes(both, tmp_path))
    for one, other in zip(found, plain, strict=True):
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("context", slow(CONTEXTS, but=("device", "inference", "autocast")))
def test_symmetries_are_found_within(context: str) -> None:
    (model, inputs), expected = model_of("groupnorm", seed=1), pair("groupnorm").spec.groups
    with CONTEXTS[context]():
        assert discover(model, inputs).groups == expected


def test_weights_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        source, target = networks()
        states = source.state_dict(), target.state_dict()
    inputs = torch.ones(2, 4)
    assert align(*states, search="descent").distance >= 0
    assert align(source, target, example_inputs=inputs, search="descent").function_preserved


def test_where_tensors_have_no_values_it_is_refused() -> None:
    source, target = (network.state_dict() for network in networks())
    with FakeTensorMode(), pytest.raises(InputError, match="within a FakeTensorMode"):
        align(source, target)

    def distance(bias: Tensor) -> Tensor:
        return torch.tensor(align({**source, "0.bias": bias}, target).distance)

    with pytest.raises(InputError, match="outside of it"):
        torch.func.vmap(distance)(torch.randn(2, 9))
