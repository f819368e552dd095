"""The reproductions run from end to end on scikit-learn's digits, and their measures are right."""

import pytest
import torch
from torch import nn

from bench.reproduce import git_rebasin, merge_many, merging
from bench.reproduce.setting import Ensemble, Setting, barrier, target
from gpu_align import Permutation, discover
from gpu_align._network import Data, Examples

SHORT = merge_many.Case((64, 16, 16, 10), epochs=2, batch=128, many=3)


@pytest.fixture(scope="module")
def many() -> list[dict]:
    return merge_many.run(SHORT, "digits", "cpu")


def test_a_barrier_is_the_most_above_the_line_of_the_ends():
    assert barrier([1.0, 1.5, 3.0]) == 0
    assert barrier([0.0, 2.0, 5.0, 3.0]) == 3.0
    assert barrier([1.0, 0.0, 1.0]) == 0


def test_an_ensemble_is_the_mean_of_probabilities():
    torch.manual_seed(0)
    parts, x = [nn.Linear(4, 3) for _ in range(3)], torch.randn(5, 4)
    mean = torch.stack([part(x).softmax(-1) for part in parts]).mean(0)
    torch.testing.assert_close(Ensemble(parts)(x).exp(), mean)


@pytest.mark.slow
def test_ways_of_merging_on_a_pair_that_is_trained_here():
    pair = merging.small_pair("cpu", epochs=4)
    rows = merging.measure(pair, 3, learned=True)
    [best] = (row for row in rows if row.get("best"))
    [auto] = (row for row in rows if row["order"] == "merge auto")
    alone = ("target", "source", "merge auto", "merge distill")
    ways = [row for row in rows if row["order"] not in alone]
    # What was chosen on held-back images is chosen again from what the rows say of these.
    permuted = [row for row in ways if not row["set right by"].startswith("refit")]
    permuted = [row for row in permuted if row["order"] != "as given"]
    assert best["held loss"] == min(row["held loss"] for row in permuted)
    assert best["barrier"] == pytest.approx(best["barrier at the midpoint"], abs=1e-9)
    assert best["losses"] == pytest.approx([*pair.ends[:1], best["loss"], pair.ends[1]])
    assert {row["set right by"] for row in ways} == {"", "repair", "refit", "refit-parents"}
    assert auto["CPU seconds, order"] > 0
    learned = [row for row in rows if row["order"] in merging.LEARNED and not row["set right by"]]
    assert [row["barrier"] for row in learned] == pytest.approx(
        [row["barrier at the midpoint"] for row in learned], abs=1e-9
    )
    assert [row["order"] for row in learned] == list(merging.LEARNED)
    limits = {"barrier": best["barrier"], "loss": auto["loss"] - 1e-6}
    *_, first, second = merging.targets(pair.name, rows, limits)
    assert (first["met"], second["met"]) == (True, False)


@pytest.mark.slow
def test_a_pair_with_batch_norms_is_never_left_without_statistics():
    torch.manual_seed(0)
    norms = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
    states = [{k: torch.randn_like(v.float()).abs() for k, v in norms.state_dict().items()}] * 2
    data = Data.of((torch.randn(400, 8), torch.arange(400) % 10))
    data = Data(data.fit, data.held, data.held)
    pair = merging.pair_of("planted", norms, (2, 8), data, states, "cpu")
    assert pair.plain == "norms"
    found = merging.measure(pair, 3)
    unmended = {row["order"] for row in found if not row["set right by"]}
    assert unmended == {"target", "source", "as given"}


def test_split_data_are_disjoint_and_all_there():
    labels = torch.arange(1000) % 10
    first, second = merge_many.split_by_class(Examples.of(torch.arange(1000.0)[:, None], labels))
    values = [part.lots[0].inputs[:, 0].tolist() for part in (first, second)]
    assert sorted(values[0] + values[1]) == list(range(1000))
    counts = torch.bincount(first.lots[0].targets, minlength=10)
    assert counts.tolist() == [80] * 5 + [20] * 5


@pytest.mark.slow
def test_several_networks(many):
    rows = {(row["networks"], row["order"], row["set right by"]): row for row in many}
    assert rows["3 networks", "MergeMany", ""]["cycle error"] == 0
    assert rows["3 networks", "each to network 0", ""]["cycle error"] > 0
    assert ("split data", "by both", "refit") in rows
    judged = merge_many.targets(many, merge_many.LIMITS)
    assert len(judged) == 5
    assert all(row["met"] == (row["found"] <= row["at most"]) for row in judged)


def test_trained_networks_stay_for_later_runs(tmp_path):
    data = Data.of("digits").fitted((64,))
    part = data.fit.take(200)
    device = torch.device("cpu")
    first = merge_many.networks(SHORT, [part], "all", tmp_path, device)
    [path] = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    second = merge_many.networks(SHORT, [part], "all", tmp_path, device)
    assert path.stat().st_mtime_ns == before
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


@pytest.mark.slow
def test_widths_and_stages():
    sweep = git_rebasin.Sweep("mlp", (8, 16), 3, 128, (1, 3))
    rows = git_rebasin.run(sweep, "digits", "cpu")
    assert [(row["width"], row["epoch"]) for row in rows] == [(8, 3), (16, 1), (16, 3)]
    for row in rows:
        curve = row["curves"]["weights"]
        assert row["losses of both"] == [curve[0], curve[-1]]
        assert row["barrier, weights"] >= 0
        assert set(row["curves"]) == {"as given", "weights", "activations", "straight-through"}
        assert len(curve) == git_rebasin.POINTS


def test_two_exact_networks_that_no_order_connects():
    row = git_rebasin.counter_example()
    assert row["losses of both"] == [0, 0]
    assert row["orders"] == 2
    assert row["barrier, best of all orders"] > 0.1


@pytest.mark.parametrize("network", git_rebasin.CIFAR)
def test_networks_for_images_are_those_of_ten_classes(network):
    make, shape = git_rebasin.NETWORKS[network]
    assert make(0, 1).eval()(torch.randn(1, *shape)).shape == (1, 10)


def test_a_planted_copy_with_batch_norms_has_no_barrier():
    torch.manual_seed(0)
    layers = (nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))
    model = nn.Sequential(*layers).eval()
    images = torch.randn(200, 8)
    with torch.no_grad():
        layers[-1].weight *= 10  # a network that is sure, so that a mean of others is worse
        data = Data.of((images, model(images).argmax(1)))
    setting = Setting.of(model, Data(data.fit, data.held, data.held), (2, 8), "cpu")
    state = setting.mean([model.state_dict()] * 2, "norms")
    spec = discover(model, torch.randn(2, 8))
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(1)).apply(state)
    row = git_rebasin.measure(setting, spec, [state, planted], "norms", learned=False)
    assert row["barrier, weights"] == pytest.approx(0, abs=1e-6)
    assert row["barrier, activations"] == pytest.approx(0, abs=1e-6)
    assert row["barrier, as given"] > 1e-3
    unmended = git_rebasin.measure(setting, spec, [state, planted], learned=False)
    assert unmended["barrier, as given"] != pytest.approx(row["barrier, as given"], rel=1e-3)


@pytest.mark.slow
def test_a_network_for_images():
    """ResNet20 on random images: that its way is open, not how good it is."""
    torch.manual_seed(0)
    images, labels = torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    data = Data.of((images, labels))
    sweep = git_rebasin.Sweep("resnet20", (1,), 1, 16, ())
    [row] = git_rebasin.run(sweep, Data(data.fit, data.held, data.held), "cpu")
    assert row["width"] == 1


def test_a_target_is_an_upper_limit():
    assert target("loss", 0.5, 0.5)["met"]
    assert not target("loss", 0.6, 0.5)["met"]
    assert not target("loss", float("nan"), 0.5)["met"]
