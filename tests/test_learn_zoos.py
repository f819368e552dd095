"""Zoos: networks trained together are those trained alone, and an interrupted zoo is finished."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gpu_align import CheckpointError, InputError
from gpu_align.learn import ClassifierRecipe, Siren, SirenRecipe, load_zoo, make_zoo, train_together
from gpu_align.learn._many import fresh_states
from gpu_align.learn._nets import coordinates, perceptron

SMALL = SirenRecipe(views=2, hidden=(4, 4), steps=20, rate=1e-2, shard=3)


def images(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 5, generator=generator), torch.arange(count) % 3


def test_a_network_of_many_is_trained_as_it_is_alone() -> None:
    states = fresh_states(lambda: Siren([2, 5, 1]), 3, seed=0)
    places = coordinates(3, 5)
    targets = images()[0].flatten(1)[:3, :, None]
    found = train_together(
        Siren([2, 5, 1]),
        states,
        lambda step: (places.expand(3, -1, -1), targets),
        F.mse_loss,
        steps=15,
        rate=1e-2,
    )
    for number in range(3):
        model = Siren([2, 5, 1])
        model.load_state_dict({name: tensor[number] for name, tensor in states.items()})
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(15):
            loss = F.mse_loss(model(places), targets[number])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        torch.testing.assert_close(found.losses[number], loss.detach(), rtol=1e-3, atol=1e-6)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(found.states[name][number], tensor, rtol=1e-3, atol=1e-4)


def test_a_network_stops_where_its_loss_is_low() -> None:
    recipe = SirenRecipe(hidden=(8, 8), steps=200, rate=1e-2, psnr=20.0)
    data = images()
    states, facts = recipe.train(range(4), *data, lambda share: None)
    assert bool((facts["steps"] < 200).all())
    assert bool((facts["psnr"] >= 20).all())
    assert bool((facts["psnr"] < 25).all())  # it went no further
    model = recipe.model()
    for number in range(4):
        weights = {name: tensor[number] for name, tensor in states.items()}
        values = functional_call(model, weights, (coordinates(3, 5),))
        error = F.mse_loss(values[:, 0], data[0][number].flatten())
        assert float(-10 * error.log10()) == pytest.approx(float(facts["psnr"][number]), abs=1e-3)


def test_sirens_know_their_images(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", SMALL, *images())
    assert len(zoo) == 8
    assert zoo.facts["image"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert zoo.facts["label"].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert list(zoo.states) == list(SMALL.model().state_dict())
    first = zoo.states["0.weight"]
    assert first.shape == (8, 4, 2)
    assert not torch.equal(first[0], first[4])  # views begin elsewhere


def test_an_interrupted_zoo_is_finished_to_the_same_bytes(tmp_path: Path) -> None:
    shares: list[float] = []
    make_zoo(tmp_path / "whole", SMALL, *images(), progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def interrupt(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_zoo(tmp_path / "cut", SMALL, *images(), progress=interrupt)
    with pytest.raises(CheckpointError, match="1 of 3 files"):
        load_zoo(tmp_path / "cut")
    make_zoo(tmp_path / "cut", SMALL, *images())
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == names
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = make_zoo(tmp_path, SMALL, *images())

    def none(share: float) -> None:
        raise AssertionError("trained again")

    again = make_zoo(tmp_path, SMALL, *images(), progress=none)
    assert again.settings == first.settings
    for name, tensor in first.states.items():
        assert torch.equal(tensor, again.states[name])


def test_another_zoo_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    make_zoo(tmp_path, SMALL, *images())
    x, y = images()
    other = SirenRecipe(2, (4, 4), steps=20, rate=1e-2, shard=3, seed=1)
    with pytest.raises(CheckpointError, match="data, seed differ"):
        make_zoo(tmp_path, other, x + 1, y)
    with pytest.raises(CheckpointError, match="holds no zoo"):
        load_zoo(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        make_zoo(tmp_path / "file", SMALL, x, y)
    (tmp_path / "zoo.json").write_text("[]")
    with pytest.raises(CheckpointError, match="something else"):
        load_zoo(tmp_path)


def test_classifiers_learn_and_differ(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    examples = torch.randn(90, 4, generator=generator) + 4 * F.one_hot(labels, 4)
    recipe = ClassifierRecipe(5, hidden=(8,), steps=60, rate=1e-2, shard=3)
    zoo = make_zoo(tmp_path, recipe, examples, labels)
    assert len(zoo) == 5
    assert bool((zoo.facts["accuracy"] > 0.9).all())
    model = perceptron([4, 8, 3])
    for number in range(5):
        model.load_state_dict({name: tensor[number] for name, tensor in zoo.states.items()})
        accuracy = (model(examples).argmax(1) == labels).float().mean()
        assert float(zoo.facts["accuracy"][number]) == pytest.approx(float(accuracy))
    assert len({float(loss) for loss in zoo.facts["loss"]}) == 5


def test_bad_data_are_refused(tmp_path: Path) -> None:
    x, y = images()
    with pytest.raises(InputError, match=r"images \[m, height, width\].*at least one view"):
        make_zoo(tmp_path, SMALL, x.flatten(1), y)
    with pytest.raises(InputError, match="at least one network"):
        make_zoo(tmp_path, ClassifierRecipe(0), x.flatten(1), y)
    with pytest.raises(InputError, match="at least one step"):
        train_together(nn.Linear(1, 1), {}, lambda step: (x, y), F.mse_loss, steps=0, rate=1.0)
    with pytest.raises(InputError, match="without buffers"):
        fresh_states(lambda: nn.BatchNorm1d(2), 2, seed=0)
