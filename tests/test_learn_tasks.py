"""The tasks of learning on weights: their parts by definition, their commands from end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.func import functional_call
from typer.testing import CliRunner, Result

from gpu_align import InputError, chain_spec
from gpu_align._cli._main import app
from gpu_align._network import Data, Examples
from gpu_align.learn import (
    SineRecipe,
    Sines,
    TrainingPlan,
    VariedRecipe,
    WeightSpace,
    Work,
    make_zoo,
)
from gpu_align.learn._adapt import agreement, linear_change, message_change
from gpu_align.learn._domains import shifted
from gpu_align.learn._embed import contrast, sine_forms
from gpu_align.learn._forms import between_classes
from gpu_align.learn._nets import perceptron
from gpu_align.learn._predict import statistics, tau
from gpu_align.learn._sines import r_squared
from gpu_align.learn._split_zoos import grey_images, make_split_zoo, taken
from gpu_align.learn._supervised import Parts, Setting, Task, Way, measured

IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["learn", *map(str, words)])


def quiet(text: str, done: int, total: int | None) -> None:
    """Show nothing."""


# Measures and losses by their definitions.


def test_r_squared_is_that_of_sklearn() -> None:
    said, right = torch.randn(2, 30, 2, dtype=torch.float64).unbind()
    expected = r2_score(right, said, multioutput="raw_values")
    assert r_squared(said, right).tolist() == pytest.approx(list(expected))


def test_tau_counts_pairs() -> None:
    said, right = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert tau(said, right) == pytest.approx((4 - 2) / 6)
    assert tau(torch.ones(4), right) == 0


def test_the_contrast_is_the_cross_entropy_of_the_partner() -> None:
    x = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1)
    total = 0.0
    for i in range(6):
        weights = {j: float(torch.exp(x[i] @ x[j] / 0.1)) for j in range(6) if j != i}
        total -= float(torch.tensor(weights[(i + 3) % 6] / sum(weights.values())).log())
    assert float(contrast(x)) == pytest.approx(total / 6, rel=1e-5)


def test_the_share_between_classes_is_that_of_the_means() -> None:
    x, labels = torch.randn(20, 3, 2, dtype=torch.float64), torch.arange(20) % 4
    rows = x.flatten(1)
    between = sum(
        5 * (rows[labels == label].mean(0) - rows.mean(0)).square().sum() for label in range(4)
    )
    expected = float(between / (rows - rows.mean(0)).square().sum())
    assert between_classes((x,), labels) == pytest.approx(expected)


def test_agreement_counts_pairs_of_classifiers() -> None:
    said = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 1], [0, 0, 0, 2]])
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = sum(float((said[i] == said[j]).float().mean()) for i, j in pairs) / len(pairs)
    assert agreement(said) == pytest.approx(expected)
    assert agreement(said[:1]) == 1


# Images of other domains.


def test_a_quarter_turn_is_exact() -> None:
    low = IMAGES.amin()
    turned = shifted(IMAGES, "rotate", 90.0, 0)
    quarters = [torch.rot90(IMAGES, turns, (2, 3)) for turns in (1, 3)]
    assert min(float((turned - q).abs().max()) for q in quarters) < 1e-5
    assert float(shifted(IMAGES, "rotate", 40.0, 0).amin()) >= float(low) - 1e-6


def test_a_blur_keeps_what_is_constant_and_the_shape() -> None:
    flat = torch.full((2, 5, 5), 0.7)
    torch.testing.assert_close(shifted(flat, "blur", 1.5, 0), flat)
    assert float(shifted(IMAGES, "blur", 1.0, 0).var()) < float(IMAGES.var())


def test_noise_has_its_deviation_and_its_seed() -> None:
    large = torch.rand(1, 200, 200)
    found = shifted(large, "noise", 0.3, 1)
    assert float((found - large).std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(found, shifted(large, "noise", 0.3, 1))
    assert not torch.equal(found, shifted(large, "noise", 0.3, 2))


def test_other_shifts_are_refused() -> None:
    with pytest.raises(InputError, match="among rotate, blur, noise, got 'fog'"):
        shifted(IMAGES, "fog", None, 0)
    with pytest.raises(InputError, match="expected images"):
        shifted(torch.rand(3, 4), "blur", None, 0)


# Networks of each kind.


@pytest.mark.slow
def test_networks_of_waves_show_them(tmp_path: Path) -> None:
    sines = Sines(SineRecipe(hidden=(12, 12), steps=150, rate=1e-2), 6, 2, 3)
    found = make_split_zoo(tmp_path, sines.sources(0), device=CPU, progress=quiet)
    assert [len(part) for part in vars(found.parts).values()] == [12, 4, 6]
    assert float(found.facts["error"].median()) < 0.02
    x = torch.linspace(-1, 1, 50)[:, None]
    for number in (0, 7, 15):
        state = {name: tensor[number] for name, tensor in found.states.items()}
        said = functional_call(sines.recipe.model(), state, (x,))[:, 0]
        a, b = (float(found.facts[name][number]) for name in ("amplitude", "frequency"))
        wave = a * torch.sin(b * torch.pi * x[:, 0])
        assert float((said - wave).square().mean()) < 0.1 * a**2 + 1e-3
    forms = sine_forms(found, sines, Work())
    assert all(cell.is_odd for cell in forms.signs.cells[:-1])
    assert not any(cell.is_odd for cell in forms.orders.cells)
    first = found.states["0.weight"].flatten(1)
    assert len({tuple(row.tolist()) for row in first}) == len(first)


def test_views_of_a_wave_lie_one_after_another() -> None:
    found = SineRecipe(views=2, steps=1).train(
        range(6), torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.arange(3), lambda share: None
    )[1]
    assert found["number"].tolist() == [0, 1, 2, 0, 1, 2]


def test_varied_classifiers_are_measured_on_what_they_have_not_seen(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    recipe = VariedRecipe(5, fitted=40, hidden=(6,), steps=30, shard=2)
    zoo = make_zoo(tmp_path, recipe, x, y)
    model = perceptron([3, 6, 2])
    for number in range(5):
        state = {name: tensor[number] for name, tensor in zoo.states.items()}
        right = functional_call(model, state, (x[40:],)).argmax(1) == y[40:]
        assert float(zoo.facts["accuracy"][number]) == pytest.approx(float(right.float().mean()))
    for name in ("share", "noise", "scale"):
        assert len(set(zoo.facts[name].tolist())) == 5
    with pytest.raises(InputError, match="fitted=60 of 60"):
        VariedRecipe(5, fitted=60).count(x, y)


def test_statistics_do_not_depend_on_the_order_of_units() -> None:
    states = {"0.weight": torch.randn(4, 5, 3), "0.bias": torch.randn(4, 5)}
    order = torch.randperm(5)
    moved = {name: tensor[:, order] for name, tensor in states.items()}
    torch.testing.assert_close(statistics(moved), statistics(states))
    assert statistics(states).shape == (4, 14)


def test_grey_images_are_brought_to_0_1() -> None:
    images, _ = grey_images(Examples.of(IMAGES * 7 - 3, torch.arange(4)))
    assert (float(images.amin()), float(images.amax())) == (0, 1)
    with pytest.raises(InputError, match="one channel"):
        grey_images(Examples.of(torch.rand(4, 3, 6, 6), torch.arange(4)))
    with pytest.raises(InputError, match="a class for each"):
        grey_images(Examples.of(IMAGES, torch.rand(4)))
    with pytest.raises(InputError, match="a test part"):
        taken(Data.of((IMAGES, torch.arange(4)), held=0.5), None)


# What is chosen, and by which networks.


class Constant(nn.Module):
    """Says the same of every network."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.value.expand(len(features[0]), 1)


def test_a_setting_is_chosen_by_held_back_networks_only() -> None:
    targets = torch.tensor([0.0, 0.0, 1.0, 1.0, 5.0, 5.0])[:, None]
    numbers = torch.arange(6)
    task = Task(
        targets,
        Parts(numbers[:2], numbers[2:4], numbers[4:]),
        F.mse_loss,
        {"closeness": lambda said, right: -float((said - right).square().mean())},
    )
    plan = TrainingPlan(1, rate=1e-9)
    settings = tuple(
        Setting(str(value), lambda value=value: Constant(value), plan) for value in (0.0, 1.0, 5.0)
    )
    result = measured(Way("m", "f", (torch.zeros(6, 1),), settings), task, Work(seeds=(0, 1)))
    assert result.row.setting == "1.0"  # the test networks would choose 5.0, training ones 0.0
    assert result.row.settings == 3
    assert [run.values["closeness"] for run in result.row.runs] == pytest.approx([-16, -16])
    torch.testing.assert_close(result.outputs, torch.ones(2, 1))


@pytest.mark.parametrize("make", [linear_change, message_change])
def test_a_change_commutes_with_the_symmetries(make: Callable[[WeightSpace], nn.Module]) -> None:
    space = WeightSpace(chain_spec(perceptron([3, 4, 4, 2]).state_dict()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        change = make(space).double()
        features = space.from_state_dicts([perceptron([3, 4, 4, 2]).state_dict() for _ in "ab"])
    features = tuple(x.double() for x in features)
    elements = space.random_elements(2, seed=0)
    after = change(space.act(elements, features))
    before = space.act(elements, change(features))
    assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(after, before, strict=True))


# The commands.

TINY = {
    "classify": ("--images", 12, "--hidden", "4,4", "--steps", 5, "--effort", 0.02),
    "embed": ("--waves", 10, "--effort", 0.02),
    "regress": ("--waves", 10, "--effort", 0.02),
    "adapt": ("--classifiers", 12, "--hidden", "6,6", "--effort", 0.02),
    "predict": ("--classifiers", 10, "--hidden", "6,6", "--effort", 0.05),
}


def without_times(document: dict) -> dict:
    for row in document["rows"]:
        del row["seconds"]
        for one in row["runs"]:
            del one["seconds"]
    return document


@pytest.mark.parametrize(
    "task",
    ["classify", *(pytest.param(t, marks=pytest.mark.slow) for t in TINY if t != "classify")],
)
def test_a_command_writes_what_it_says_and_goes_on(task: str, work: Path) -> None:
    words = (task, "--seeds", 1, "--device", "cpu", "--out", work / "out", *TINY[task])
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    kept = json.loads((work / "out" / "result.json").read_text())
    assert document.pop("written") == [
        str(work / "out" / n) for n in ("result.json", "report.html")
    ]
    assert document == kept
    assert kept["schema"] == "gpu-align/learn/1"
    page = (work / "out" / "report.html").read_text()
    assert all(row["model"] in page for row in kept["rows"])
    refused = run(*words)
    assert refused.exit_code == 2
    assert "add --resume" in refused.output
    last = sorted((work / "out" / "trainings").glob("*.pt"))[-1]
    last.unlink()
    again = run(*words, "--resume", "--quiet")
    assert again.exit_code == 0, again.output
    found = json.loads((work / "out" / "result.json").read_text())
    assert without_times(found) == without_times(kept)


def test_an_interrupted_command_says_how_to_go_on(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu_align.learn._regress.make_split_zoo", interrupted)
    done = run("regress", "--waves", 10, "--seeds", 1, "--out", work / "out")
    assert done.exit_code == 1
    assert "run the same command with --resume" in done.output


def test_widths_that_are_none_are_refused(work: Path) -> None:
    done = run("classify", "--hidden", "8,zero", "--out", work / "out")
    assert done.exit_code == 2
    assert "such as 16,16" in done.output.replace("\n", " ")
