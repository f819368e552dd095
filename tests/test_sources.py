"""What `align` takes as sources: any collection, and nothing bad in it stops the others."""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from networks import mlp, model_of
from torch import Tensor, nn

from gpu_align import (
    AlignmentFailure,
    AlignmentResult,
    CoordinateDescent,
    InputError,
    ModelError,
    Status,
    align,
    chain_spec,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage):UserWarning")

FAST = CoordinateDescent(order="forward")
State = dict[str, Tensor]


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return mlp([3, 4, 2]).state_dict()


class Raising(Mapping):
    """A mapping that cannot be read."""

    def __getitem__(self, name: str) -> Tensor:
        raise OSError("the disk is gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["0.weight"])

    def __len__(self) -> int:
        return 1


class Unreadable(nn.Sequential):
    def state_dict(self, *args: object, **options: object) -> dict:
        raise RuntimeError("gather me first")


def changed(**by: object) -> State:
    return {**state(1), **{name.replace("_", "."): value for name, value in by.items()}}


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "meta": (lambda: mlp([3, 4, 2]).to("meta"), "meta device"),
    "meta tensor": (lambda: changed(**{"0_bias": torch.ones(4, device="meta")}), "meta device"),
    "sparse": (lambda: changed(**{"0_weight": torch.eye(4, 3).to_sparse()}), "to_dense"),
    "csr": (lambda: changed(**{"0_weight": torch.eye(4, 3).to_sparse_csr()}), "to_dense"),
    "nested": (
        lambda: changed(**{"0_bias": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
        "nested",
    ),
    "freed": (lambda: changed(**{"0_bias": freed()}), "no memory"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), "no shape yet"),
    "integer keys": (lambda: dict(enumerate(state(1).values())), "make the keys text"),
    "raising mapping": (Raising, "the disk is gone"),
    "raising module": (lambda: Unreadable(*mlp([3, 4, 2])), "gather me first"),
    "not a tensor": (lambda: changed(**{"0_bias": [1.0]}), "got list"),
    "array": (lambda: {name: t.numpy() for name, t in state(1).items()}, "got ndarray"),
    "fake": (lambda: fake(), "FakeTensor"),
    "none": (lambda: None, "got NoneType"),
    "number": (lambda: 3, "got int"),
    "tensor": (lambda: torch.ones(3), "got Tensor"),
    "list": (lambda: [state(1)], "got list"),
    "empty": (dict, "missing"),
    "no file": (lambda: "no.pt", "no.pt"),
}


def freed() -> Tensor:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def fake() -> State:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return {name: torch.empty(t.shape) for name, t in state(1).items()}


def test_a_bad_source_of_any_kind_fails_in_its_place() -> None:
    """All of them in one call, good ones before, between and behind them."""
    target = state(0)
    sources: list[object] = []
    for make, _ in BAD.values():
        sources += [state(2), make()]
    results = align([*sources, state(2)], target, spec=chain_spec(target), search=FAST)
    assert [result.ok for result in results] == [True, False] * len(BAD) + [True]
    assert [result.index for result in results] == list(range(len(results)))
    for result, (kind, (_, text)) in zip(results[1::2], BAD.items(), strict=False):
        assert isinstance(result, AlignmentFailure)
        assert result.status is Status.UNUSABLE
        assert isinstance(result.error, InputError), kind
        assert text in str(result.error), kind
    alone = align(state(2), target, search=FAST)
    assert {result.distance for result in results if result.ok} == {alone.distance}


@pytest.mark.parametrize("kind", sorted(BAD.keys() - {"list", "empty"}))
def test_a_bad_network_alone_is_refused(kind: str) -> None:
    make, text = BAD[kind]
    good = state(0)
    for source, target in ((make(), good), (good, make())):
        with pytest.raises(InputError, match=text):
            align(source, target, spec=chain_spec(good), search=FAST)


def test_a_module_that_cannot_be_traced_leaves_it_to_the_next() -> None:
    class Broken(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    inputs = torch.randn(2, 3)
    sources = [Broken(*mlp([3, 4, 2])), mlp([3, 4, 2]), state(1)]
    results = align(sources, state(0), example_inputs=inputs, search=FAST)
    assert [result.ok for result in results] == [False, True, True]
    assert isinstance(results[0].error, ModelError)
    with pytest.raises(ModelError, match="broken"):
        align(sources[:1], state(0), example_inputs=inputs, search=FAST)


COLLECTIONS: dict[str, Callable[[State], object]] = {
    "list": lambda s: list(s.values()),
    "tuple": lambda s: tuple(s.values()),
    "generator": lambda s: (network for network in s.values()),
    "values": lambda s: s.values(),
    "items of a map": lambda s: map(dict, s.values()),
}


@pytest.mark.parametrize("make", COLLECTIONS.values(), ids=COLLECTIONS)
def test_any_iterable_gives_a_list(make: Callable[[dict], object]) -> None:
    networks = {name: state(seed) for seed, name in enumerate("abc", 1)}
    results = align(make(networks), state(0), search=FAST)
    assert isinstance(results, list)
    assert [result.index for result in results] == [0, 1, 2]
    assert [result.name for result in results] == [None] * 3
    alone = [align(network, state(0), search=FAST).distance for network in networks.values()]
    assert [result.distance for result in results] == pytest.approx(alone, rel=1e-9)


def test_a_mapping_of_networks_gives_a_mapping_of_results() -> None:
    networks = {"a": state(1), "bad": 3, "module": mlp([3, 4, 2]), 7: "no.pt"}
    results = align(networks, state(0), example_inputs=torch.randn(2, 3), search=FAST)
    assert list(results) == list(networks)
    assert [result.ok for result in results.values()] == [True, False, True, False]
    assert [result.name for result in results.values()] == ["a", "bad", "module", "7"]
    assert [result.index for result in results.values()] == [0, 1, 2, 3]


def test_a_mapping_with_a_tensor_is_a_network() -> None:
    assert isinstance(align(state(1), state(0), search=FAST), AlignmentResult)
    with pytest.raises(InputError, match="got dict for 'extra'"):
        align({**state(1), "extra": {}}, state(0), search=FAST)
    with pytest.raises(InputError, match="got int for 'epoch'"):
        align({"epoch": 3}, state(0), search=FAST)


def test_no_sources_give_no_results() -> None:
    assert align([], state(0)) == []
    assert align((), state(0)) == []
    assert align(iter(()), state(0)) == []
    assert align({}, state(0)) == {}


@pytest.mark.parametrize("single", [True, False])
def test_results_share_no_memory_with_the_source(single: bool) -> None:
    source, inputs = model_of("cnn", seed=1)
    target, _ = model_of("cnn", seed=2)
    for other in (target, source):  # equal networks move nothing at all
        given = source if single else [source, source]
        found = align(given, other, example_inputs=inputs, search=FAST)
        for result in [found] if single else found:
            before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
            for tensor in result.state_dict.values():
                tensor.zero_() if tensor.numel() else None
            after = source.state_dict()
            assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_ties_stay_tied_in_copies() -> None:
    fixed = torch.randn(4, 3)
    source = {"a": fixed, "b": fixed, "c": fixed[:, :1]}
    from gpu_align._align._tensors import separate

    copied = separate(source, source)
    assert copied["a"] is copied["b"]
    assert copied["c"].data_ptr() != source["c"].data_ptr()
    assert all(torch.equal(copied[name], source[name]) for name in source)
    other = {"a": torch.ones(2)}
    assert separate(other, source)["a"] is other["a"]
