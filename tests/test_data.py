"""Data: what is read from where, in which shapes, and how it is split."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from examples import targets_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, TensorDataset

from gpu_align._errors import InputError
from gpu_align._network import Batch, Data, Examples, fitted


def numbered(count: int, width: int = 3) -> tuple[Tensor, Tensor]:
    """Return examples that can be told apart by their targets."""
    return torch.arange(count * width).reshape(count, width).float(), torch.arange(count)


# Batches and examples.


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 50))
def test_batches_and_beginnings_hold_every_example_once(count: int, size: int, taken: int) -> None:
    examples = Examples.of(*numbered(count))
    batches = list(examples.batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), numbered(count)[0])
    assert targets_of(examples) == list(range(count))
    assert targets_of(examples.take(taken)) == list(range(min(taken, count)))


def test_inputs_of_every_kind_are_cut_alike() -> None:
    x, y = numbered(5)
    named = Examples.of({"x": x, "pair": (x + 1, None), "flag": True}, y)
    batch = list(named.batches(2))[1]
    assert torch.equal(batch.inputs["x"], x[2:4])
    assert torch.equal(batch.inputs["pair"][0], x[2:4] + 1)
    assert batch.inputs["flag"] is True
    assert batch.inputs["pair"][1] is None
    assert [len(batch) for batch in Examples.of((x, x)).batches(4)] == [4, 1]
    assert named.to("cpu").take(3).lots[0].inputs["x"].shape == (3, 3)


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda: Batch(torch.zeros(3, 2), torch.zeros(4)), ("(3, 2)", "(4,)", "first axis")),
        (lambda: Batch({"a": torch.zeros(3), "b": torch.zeros(2)}), ("inputs with the same",)),
        (lambda: Batch(torch.tensor(1.0)), ("first axis",)),
        (lambda: Batch({"a": 3}), ("a tensor in them",)),
        (lambda: Batch(torch.zeros(3), [0, 1, 2]), ("got list",)),  # type: ignore[arg-type]
        (lambda: Examples.of(torch.zeros(0, 2)), ("no examples",)),
        (
            lambda: Examples((Batch(torch.zeros(1)), Batch(torch.zeros(1), torch.zeros(1)))),
            ("all or none",),
        ),
        (lambda: list(Examples.of(torch.zeros(2)).batches(0)), ("at least 1",)),
        (lambda: Examples.of(torch.zeros(2)).take(0), ("at least 1",)),
    ],
)
def test_what_does_not_fit_together(make: Callable[[], Any], mentions: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    for text in mentions:
        assert text in str(caught.value)


# The split.


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 5))
def test_split_is_disjoint_complete_and_of_its_seed(count: int, held: float, seed: int) -> None:
    back = round(held * count)
    if not 0 < back < count:
        with pytest.raises(InputError, match="too few examples"):
            Data.of(numbered(count), seed=seed, held=held)
        return
    data = Data.of(numbered(count), seed=seed, held=held)
    fit, kept = targets_of(data.fit), targets_of(data.held)
    assert len(kept) == back
    assert sorted(fit + kept) == list(range(count))
    again = Data.of(numbered(count), seed=seed, held=held)
    assert (targets_of(again.fit), targets_of(again.held)) == (fit, kept)
    # Inputs stay with their targets.
    batch = data.held.lots[0]
    assert torch.equal(batch.inputs, numbered(count)[0][torch.tensor(kept)])


def test_split_of_sorted_data_has_all_classes_everywhere() -> None:
    x, y = torch.zeros(1000, 1), torch.arange(1000) // 100
    data = Data.of((x, y))
    assert set(targets_of(data.held)) == set(targets_of(data.fit)) == set(range(10))
    assert len(set(targets_of(data.fit.take(100)))) > 5
    assert targets_of(Data.of((x, torch.arange(1000)), seed=1).held) != targets_of(
        Data.of((x, torch.arange(1000)), seed=0).held
    )


def test_data_leave_the_state_of_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*numbered(20)), batch_size=4, shuffle=True)
    first, second = (targets_of(Data.of(loader, seed=2).fit) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


# Iterables of batches.


def test_loader_is_read_to_a_number_of_examples() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        while True:
            yield torch.zeros(8, 2), torch.arange(start, start + 8)
            start += 8

    data = Data.of(endless(), most=21)
    assert sorted(targets_of(data.fit) + targets_of(data.held)) == list(range(21))


def test_forms_of_batches() -> None:
    x, y = numbered(4)
    same = [
        [(x, y)],
        [[x, y]],
        [(x.numpy(), y.numpy())],
        DataLoader(TensorDataset(x, y), batch_size=3),
        [Batch(x[:1], y[:1]), Batch(x[1:], y[1:])],
        (x, y),
        Examples.of(x, y),
    ]
    for source in same:
        data = Data.of(source, held=0.5)
        assert sorted(targets_of(data.fit) + targets_of(data.held)) == [0, 1, 2, 3]
        assert data.fit.lots[0].inputs.shape == (2, 3)
    for bare in ([x], [[x]], DataLoader(TensorDataset(x), batch_size=2), (x, None)):
        assert not Data.of(bare).fit.have_targets
    assert Data.of(data) is data
    several = Data.of([((x, x + 1), y)], held=0.5).fit.lots[0]
    assert torch.equal(several.inputs[0] + 1, several.inputs[1])


def test_dicts_of_collators() -> None:
    ids, mask = torch.arange(8).reshape(4, 2), torch.ones(4, 2)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(4)}
    lot = Data.of([batch], held=0.25).fit.lots[0]
    assert lot.inputs.keys() == {"input_ids", "attention_mask"}
    assert lot.targets is not None
    assert torch.equal(lot.inputs["input_ids"][:, 0], 2 * lot.targets)
    assert "labels" in batch
    unlabelled = Data.of([{"input_ids": ids}]).fit
    assert not unlabelled.have_targets


def test_labels_of_causal_models_are_the_next_tokens() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    lots = Data.of([{"input_ids": ids, "labels": labels}], held=0.5)
    found = {tuple(part.lots[0].targets[0].tolist()) for part in (lots.fit, lots.held)}
    assert found == {(2, 3, 4, -100), (6, -100, -100, -100)}
    # Tokens behind a mask are no shifted inputs: these labels stay where they are.
    hidden = torch.tensor([[-100, 2, -100, -100]] * 2)
    masked = Data.of([{"input_ids": ids * 0 + 9, "labels": hidden}], held=0.5).fit.lots[0]
    assert masked.targets.tolist() == [[-100, 2, -100, -100]]


def test_texts_of_several_lengths() -> None:
    batches = [
        {"input_ids": torch.full((2, length), number), "labels": torch.full((2,), number)}
        for number, length in enumerate((3, 5, 3, 4))
    ]
    data = Data.of(batches, held=0.25)
    assert len(data.fit) == 6
    assert len(data.held) == 2
    for part in (data.fit, data.held):
        for batch in part.batches(4):
            assert torch.equal(batch.inputs["input_ids"][:, 0], batch.targets)
    whole = Examples.gathered([Batch(b["input_ids"], b["labels"]) for b in batches])
    assert [lot.inputs.shape for lot in whole.lots] == [(4, 3), (2, 5), (2, 4)]
    assert targets_of(whole.take(5)) == [0, 0, 2, 2, 1]
    assert targets_of(whole.subset(torch.tensor([7, 0, 4, 2]))) == [0, 2, 1, 3]


def broken() -> Iterator[Tensor]:
    yield torch.zeros(2, 1)
    raise RuntimeError("disk gone")


@pytest.mark.parametrize(
    ("source", "mentions"),
    [
        (3, ("got int", "iterable of batches")),
        ({"x": torch.zeros(2)}, ("got dict",)),
        (torch.zeros(4, 2), ("got Tensor",)),
        (TensorDataset(torch.zeros(4, 2)), ("got TensorDataset", "DataLoader")),
        ([], ("no batches",)),
        ([torch.zeros(0, 2)], ("no examples",)),
        (["text"], ("batch 0", "got str")),
        ([(torch.zeros(2), torch.zeros(2), torch.zeros(2))], ("tuple of 3", "one tuple")),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(3))], ("batch 1",)),
        ([(torch.zeros(2), torch.zeros(2)), torch.zeros(2)], ("all or none",)),
        ((torch.zeros(1, 2), torch.zeros(1)), ("too few examples: 1",)),
        ([(np.array(["a", "b"]), np.zeros(2))], ("dtype <U1",)),
        (broken(), ("disk gone", "test_data.py, line")),
    ],
)
def test_unusable_data(source: Any, mentions: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        Data.of(source)
    for text in mentions:
        assert text in str(caught.value)


@pytest.mark.parametrize("options", [{"held": 0.0}, {"held": 1.0}, {"most": 1}])
def test_unusable_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected"):
        Data.of(numbered(10), **options)


# Images and models.


def test_images_are_fitted_to_the_model() -> None:
    x, y = torch.randn(4, 1, 28, 28), torch.arange(4)
    examples = Examples.of(x, y)
    for shape, expected in {
        (1, 28, 28): x,
        (784,): x.flatten(1),
        (28, 28): x[:, 0],
        (28, 28, 1): x.permute(0, 2, 3, 1),
        (1, 14, 14): avg_pool2d(x, 2),
        (1, 7, 28): avg_pool2d(x, (4, 1)),
    }.items():
        found = fitted(examples, shape).lots[0]
        assert torch.equal(found.inputs, expected)
        assert found.targets is y
    assert torch.equal(fitted(Examples.of(x.flatten(1)), (1, 28, 28)).lots[0].inputs, x)
    assert Data.of((x, y)).fitted((784,)).held.lots[0].inputs.shape == (1, 784)


def test_channels_are_moved_and_not_mixed() -> None:
    x = torch.randn(2, 3, 8, 8)
    last = fitted(Examples.of(x), (8, 8, 3))
    assert torch.equal(last.lots[0].inputs, x.permute(0, 2, 3, 1))
    assert torch.equal(fitted(last, (3, 8, 8)).lots[0].inputs, x)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 14, 14), (783,), (1, 9, 9), (1, 16, 49), ()])
def test_images_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        fitted(Examples.of(torch.zeros(2, 1, 28, 28)), shape)
    assert "1x28x28" in str(caught.value)
    assert "x".join(map(str, shape)) in str(caught.value)


def test_examples_of_several_shapes_of_which_some_fit_are_left_as_they_are() -> None:
    sequences = Data.of([torch.zeros(4, length, 3) for length in (5, 7)], held=0.5)
    assert sequences.fitted((5, 3)) == sequences
    images = Examples.of(torch.randn(4, 1, 2, 3), torch.arange(4))
    given = Data(fitted(images, (6,)), fitted(images, (6,)), images).fitted((6,))
    assert given.test is not None
    assert given.test.lots[0].inputs.shape == (4, 6)
    with pytest.raises(InputError, match="the model takes 6x3"):
        sequences.fitted((6, 3))


def test_tokens_are_left_as_they_are() -> None:
    tokens = Examples.of(torch.zeros(2, 5, dtype=torch.int64))
    assert fitted(tokens, (7,)).lots[0].inputs.shape == (2, 5)


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(32, 5, [4] * 8), (7, 3, [2] * 3), (11, 4, [2] * 5), (6, 9, [6])]
)
def test_equal_batches_leave_few_out(count: int, most: int, sizes: list[int]) -> None:
    parts = list(Examples.of(torch.arange(count)[:, None]).equal_batches(most))
    assert [len(part) for part in parts] == sizes
    assert torch.cat([part.inputs for part in parts]).flatten().tolist() == list(range(sum(sizes)))
