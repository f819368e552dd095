"""alpha="auto": what is chosen loses least half-way, of what the alignments one by one give."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import mlp, randomised
from test_cli import FEW, Cli, cli, folder
from torch import Tensor, nn

from gpu_align import (
    AlignmentResult,
    Budget,
    InputError,
    Permutation,
    Progress,
    SearchStore,
    Status,
    align,
    discover,
)
from gpu_align._align import ALPHAS, Evidence, Model, Settings, align_networks, read_result
from gpu_align._network import Data, evaluate
from gpu_align._search import CoordinateDescent

__all__ = ["cli", "folder"]

FAST = {"search": "descent"}
SIZES = [5, 8, 7, 3]


def network(seed: int) -> nn.Sequential:
    return randomised(mlp(SIZES, nn.Tanh), seed)


def data(seed: int = 0) -> Data:
    """Examples of a network that lies near those that are aligned."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return Data.of((x, network(0)(x)))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def loss_half_way(target: nn.Module, source: object, examples: Data) -> float:
    middle = {name: (t + source[name]) / 2 for name, t in state(target).items()}
    return evaluate(target, middle, examples.held, "mse").loss


def test_each_source_gets_what_loses_least_of_all_that_is_tried() -> None:
    target, sources, examples = network(1), [network(seed) for seed in range(2, 8)], data()
    tried = [align(sources, target, data=examples, evidence="weights", **FAST)]
    tried += [align(sources, target, data=examples, alpha=alpha, **FAST) for alpha in ALPHAS]
    chosen = set()
    for number, result in enumerate(align(sources, target, data=examples, alpha="auto", **FAST)):
        each = [results[number].unwrap() for results in tried]
        losses = [loss_half_way(target, one.state_dict, examples) for one in each]
        assert [trial.alpha for trial in result.alphas] == [0, *ALPHAS]
        assert [trial.loss for trial in result.alphas] == pytest.approx(losses)
        assert [trial.distance for trial in result.alphas] == [one.distance for one in each]
        best = each[int(np.argmin(losses))]
        assert (result.evidence, result.alpha) == (best.evidence, best.alpha)
        for group in result.permutation:
            assert torch.equal(result.permutation[group], best.permutation[group])
        assert result.function_preserved
        chosen.add(result.alpha)
    assert len(chosen) > 1


def test_of_a_planted_copy_nothing_is_lost_and_the_weights_are_enough() -> None:
    target, examples = network(0), data()
    spec = discover(target, examples.fit.lots[0][:2].inputs)
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(1))
    result = align(planted.apply(state(target)), target, spec=spec, data=examples, alpha="auto")
    assert isinstance(result, AlignmentResult)
    assert (result.evidence, result.alpha, result.distance) == ("weights", None, 0.0)
    assert [trial.loss for trial in result.alphas] == pytest.approx([0.0] * 3, abs=1e-20)


def test_the_choice_is_said_and_kept(tmp_path: Path) -> None:
    result = align(network(2), network(1), data=data(), alpha="auto", **FAST)
    said = "chosen by the midpoint's loss on held-back data"
    assert said in result.summary()
    assert "without data a lower distance" not in result.summary()
    result.save_json(tmp_path / "result.json")
    read = read_result(tmp_path / "result.json")["alphas"]
    assert [trial["loss"] for trial in read] == [trial.loss for trial in result.alphas]
    result.write_report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert said in page
    assert "alphas" not in align(network(2), network(1), data=data(), **FAST).to_json()


def test_losses_that_are_not_finite_are_not_chosen() -> None:
    class Steep(nn.Sequential):
        """It divides by zero, so that no loss is finite."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0

    nets = [Steep(*randomised(mlp(SIZES, nn.Tanh), seed)) for seed in (1, 2)]
    inputs = torch.randn(60, 5, dtype=torch.float64)
    both = {"spec": discover(network(1), inputs[:2]), "data": (inputs, torch.zeros(60, 3).double())}
    result = align(nets[1], nets[0], example_inputs=inputs[:2], alpha="auto", **both, **FAST)
    assert [trial.loss for trial in result.alphas] == [None] * 3
    assert result.evidence == "weights"
    assert "not finite with 0.3" in result.summary()
    assert '"loss": null' in json.dumps(result.to_json())


def test_what_cannot_be_judged_is_said_before_anything_is_sought() -> None:
    x, y = torch.zeros(60, 5).double(), torch.zeros(60, 9).double()

    def never(entry: Progress) -> None:
        raise AssertionError(entry.stage)

    with pytest.raises(InputError, match="shape"):
        align(network(2), network(1), data=(x, y), alpha="auto", progress=never, **FAST)


def test_seconds_are_shared() -> None:
    left: list[float] = []

    def note(entry: Progress) -> None:
        if entry.seconds_left is not None:
            left.append(entry.seconds_left)

    options = {"data": data(), "alpha": "auto", "budget": Budget(seconds=300), "progress": note}
    align(network(2), network(1), **options, **FAST)
    assert 50 < max(left) <= 100


def test_an_interruption_between_two_searches_leaves_what_was_found(tmp_path: Path) -> None:
    def stop(entry: Progress) -> None:
        if entry.stage == "alpha 0.3, scale of the evidence":
            raise KeyboardInterrupt

    store = SearchStore(tmp_path / "s")
    part = found(store, stop)
    assert store.kept
    assert found(SearchStore(tmp_path / "s", resume=True), None).alphas == found(None, None).alphas
    assert part.status is Status.INTERRUPTED
    assert [trial.alpha for trial in part.alphas] == [0]
    assert part.evidence == "weights"


@pytest.mark.parametrize("alpha", ["0", "0.3", "1"])
def test_an_interrupted_choice_is_resumed(alpha: str, tmp_path: Path) -> None:
    def stop(entry: Progress) -> None:
        if entry.stage.startswith(f"alpha {alpha}, Coord") and entry.step == 2:
            raise KeyboardInterrupt

    whole = found(None, None)
    store = SearchStore(tmp_path / "s")
    part = found(store, stop)
    assert part.status is Status.INTERRUPTED
    assert store.kept
    again = SearchStore(tmp_path / "s", resume=True)
    stages: list[str] = []
    resumed = found(again, lambda entry: stages.append(entry.stage))
    assert resumed.alphas == whole.alphas
    assert resumed.status is whole.status
    assert all(
        torch.equal(tensor, resumed.state_dict[name]) for name, tensor in whole.state_dict.items()
    )
    for ended in (other for other in ("0", "0.3", "1") if other < alpha):
        assert not [stage for stage in stages if stage.startswith(f"alpha {ended}, Coord")]


def found(
    store: SearchStore | None, progress: Callable[[Progress], None] | None
) -> AlignmentResult:
    evidence = Evidence.of("both", data(), "auto", 0)
    search = CoordinateDescent(starts=4, initial="random")
    settings = Settings(search, progress=progress, evidence=evidence)
    model = Model(network(1), torch.zeros(2, 5, dtype=torch.float64))
    states = [state(network(2))], state(network(1))
    [result] = align_networks(*states, settings, model=model, store=store, throw=True)
    return result.unwrap()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "best", "data": data()}, "or \"auto\", got 'best'"),
        ({"alpha": "auto", "data": (torch.zeros(9, 5).double(), None)}, "no targets"),
        ({"alpha": "auto"}, "no data were given"),
        ({"alpha": "auto", "data": data(), "evidence": "activations"}, "leave alpha"),
    ],
)
def test_what_cannot_be_chosen_on_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        align(network(2), network(1), **options)


def test_from_the_command_line(cli: Cli, folder: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 6)).astype(np.float32)
    np.savez("data.npz", x=x, y=generator.integers(0, 3, 60))
    pair = ("align", "1.safetensors", "0.safetensors", *FEW)
    run = (*pair, "--model", "nets.py:mlp", "--input-shape", "2,6", "--data", "data.npz")
    result = cli(*run, "--alpha", "auto", "--json")
    assert result.exit_code == 0, result.output
    losses = [trial["loss"] for trial in json.loads(result.stdout)["alphas"]]
    assert len(losses) == 3
    for trial, given in zip(("0", "0.3", "1"), losses, strict=True):
        assert f"{given:.4g} with {trial}" in " ".join(cli(*run, "--alpha", "auto").stdout.split())
    assert cli(*run, "--alpha", "much").exit_code == 2
