"""Merges of three and more networks: one order for all, by weights and data together."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures as own
import hf_architectures as hf
import pytest
import sequence_architectures as sequence
import torch
from marks import slow
from networks import State, mlp, pair, randomised
from test_merge_resume import assert_resumed_search_by_search
from torch import Tensor, nn
from trained_digits import DIGITS, MLP, nets, trained

from gpu_align import AlignmentProblem, Permutation, PermutationSpec, discover, merge
from gpu_align._align import CommonEvidence, Model, Settings, common_frame
from gpu_align._align._barycentre import Barycentre
from gpu_align._merge._orders import Orders
from gpu_align._network import Examples, Traces
from gpu_align._problem import picked, signed_matrix

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)
Matrices = dict[tuple[int, int], dict[str, Tensor]]


def settings() -> Settings:
    return Settings.of("descent", "l2", "cpu", 0, None, None)


def orders(model: nn.Module, states: list[State], inputs: object, data: object) -> Orders:
    """Return what brings networks into one order, without a file to keep it in."""
    spec = discover(model, inputs, verify=False)
    traced = Model(model, inputs)
    examples = Examples.of([data])
    return Orders(
        spec, states, settings(), traced, examples, Traces(model), lambda _: None, store=None
    )


def tokens() -> Tensor:
    return own.tokens(40, 5)


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, object]], Callable[[], Tensor]]] = {
    "tanh mlp": (
        lambda: (randomised(mlp([5, 8, 7, 3], nn.Tanh)), own.normal(4, 5)),
        lambda: own.normal(60, 5),
    ),
    "lstm": (sequence.lstm, tokens),
    "residual cnn": (own.se_resnet, lambda: own.normal(20, 3, 5, 5)),
    "gpt2": (lambda: hf.gpt2("sdpa"), tokens),
    "depthwise": (own.depthwise_separable, lambda: own.normal(20, 3, 5, 5)),
}


CASES = list(itertools.product(MODELS, (0.3, 1e3)))
QUICK = [("tanh mlp", 0.3), ("lstm", 1e3)]


@pytest.mark.parametrize("case", slow(CASES, but=QUICK), ids=lambda case: f"{case[0]}-{case[1]:g}")
def test_planted_copies_come_into_one_order(case: tuple[str, float]) -> None:
    name, alpha = case
    make, data = MODELS[name]
    model, inputs = make()
    spec = discover(model, inputs, verify=False)
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    copies = [p.apply(state) for p in Permutation.random(spec, 4, seed=1)]
    found = orders(model, copies, inputs, data()).aligned(alpha)
    assert found.cycle_error == 0
    assert found.permutations[0].moved() == dict.fromkeys(spec.groups, 0)
    for moved in found.states[1:]:
        assert all(torch.equal(moved[key], copies[0][key]) for key in state)


def agreeing(spec: PermutationSpec, planted: list[Permutation]) -> Matrices:
    """Return correlations of networks whose units do the same but for their orders and signs."""
    found: Matrices = {}
    for i, j in itertools.combinations(range(len(planted)), 2):
        a, b = planted[i], planted[j]
        found[i, j] = {}
        for group, known in spec.groups.items():
            if known.fixed:
                continue
            same = (a[group][:, None] == b[group]).double()
            if known.signed:
                signs = (p.signs.get(group, torch.ones_like(p[group])) for p in (a, b))
                found[i, j][signed_matrix(group)] = same * torch.outer(*signs)
            else:
                found[i, j][group] = same
    return found


def in_one_frame(
    spec: PermutationSpec, states: list[State], evidence: CommonEvidence
) -> Barycentre:
    return common_frame(
        *(states, spec, settings(), "one_by_one", 100, 0, 0),
        names=[None] * len(states),
        evidence=evidence,
    )


@pytest.mark.parametrize("name", ["mlp", "recurrent", "signed", "signed_gqa", "fixed_gqa"])
def test_data_alone_tell_the_orders_of_networks_whose_weights_have_nothing_in_common(
    name: str,
) -> None:
    spec = pair(name).spec
    planted = Permutation.random(spec, 4, seed=2)
    states = [pair(name, seed).target for seed in range(4)]
    strong = CommonEvidence(agreeing(spec, planted), dict.fromkeys(spec.groups, 1e6))
    found = in_one_frame(spec, states, strong)
    assert found.cycle_error() == 0
    for own_order, permutation in zip(planted, found.permutations, strict=True):
        expected = planted[0].compose(own_order.inverse())
        for group in spec.groups:
            assert torch.equal(permutation[group], expected[group])
            same = torch.ones_like(expected[group])
            signs = (each.signs.get(group, same) for each in (permutation, expected))
            assert torch.equal(*signs)


def worth(spec: PermutationSpec, states: list[State], evidence: CommonEvidence) -> float:
    """Return the spread of networks, less what correlations of their present places are worth."""
    total = 0.0
    for (i, j), matrices in evidence.pairs.items():
        for name, tensor in spec.tensors.items():
            if tensor.counted:
                total += float((states[i][name] - states[j][name]).square().sum())
        for name, matrix in matrices.items():
            total -= 2 * evidence.factors[name] * float(matrix.trace())
    return total / len(states) ** 2


def test_rounds_lower_the_spread_less_the_evidence_to_the_best_of_all_orders() -> None:
    model = randomised(mlp([2, 3, 2]))
    spec = discover(model, own.normal(2, 2))
    [group] = spec.groups
    states = [dict(randomised(mlp([2, 3, 2]), seed).state_dict()) for seed in range(3)]
    generator = torch.Generator().manual_seed(4)
    pairs = {
        each: {group: torch.randn(3, 3, generator=generator, dtype=torch.float64)}
        for each in itertools.combinations(range(3), 2)
    }
    evidence = CommonEvidence(pairs, {group: 2.0})

    def of(orders: list[Permutation]) -> float:
        moved = [order.apply(state) for order, state in zip(orders, states, strict=True)]
        placed: Matrices = {
            (i, j): {group: matrices[group][orders[i][group]][:, orders[j][group]]}
            for (i, j), matrices in pairs.items()
        }
        return worth(spec, moved, CommonEvidence(placed, evidence.factors))

    found = in_one_frame(spec, states, evidence)
    assert found.spread == pytest.approx(of(list(found.permutations)))
    assert found.spread_before == pytest.approx(of([Permutation.identity(spec)] * 3))
    assert all(later < earlier for earlier, later in itertools.pairwise(found.spreads))
    every = [
        Permutation(spec, {group: torch.tensor(order)})
        for order in itertools.permutations(range(3))
    ]
    first = Permutation.identity(spec)
    best = min(of([first, *others]) for others in itertools.product(every, every))
    assert found.spread == pytest.approx(best)


def test_alpha_one_weighs_the_correlations_of_a_group_like_its_weights() -> None:
    found = pair("signed")
    still = Permutation.identity(found.spec)
    states = [found.target, found.source]
    pairs = agreeing(found.spec, Permutation.random(found.spec, 2, seed=0))
    pairs[0, 1] = {name: matrix.abs() + 0.5 for name, matrix in pairs[0, 1].items()}
    frame = states, [still, still]
    evidence = CommonEvidence.of(pairs, 1.0, found.spec, settings(), *frame)
    problem = AlignmentProblem(states[1], states[0], found.spec)
    at = problem.identity()
    for name, [matrix] in evidence.towards(1, [still, still], [0]).items():
        variables = {name, name.rstrip("±")}
        weights = sum(
            float(picked(problem.similarity(v, at.perms, at.model), at.perms[v])) for v in variables
        )
        assert float(matrix.trace()) == pytest.approx(abs(weights))
    half = CommonEvidence.of(pairs, 0.5, found.spec, settings(), *frame)
    assert half.factors == {k: pytest.approx(v / 2) for k, v in evidence.factors.items()}


@functools.cache
def three() -> tuple[list[nn.Module], tuple[Tensor, Tensor]]:
    """Return three classifiers that know nothing yet, and data."""
    models = [randomised(mlp([6, 9, 8, 4]), seed).float().eval() for seed in range(3)]
    x = own.normal(200, 6).float()
    return models, (x, x[:, :4].argmax(1))


def test_auto_tries_an_order_by_weights_and_data() -> None:
    models, data = three()
    found = merge(models, data, device="cpu", search="descent")
    merged = [trial for trial in found.trials if trial.is_merged]
    tried = {trial.order for trial in merged}
    assert tried == {"as given", "weights", "weights and data, 0.3"}
    assert found.chosen.loss == min(trial.loss or 0 for trial in merged)
    by_data = merge(models, data, method="refit", device="cpu", search="descent")
    assert by_data.chosen.order == "weights and data, 0.3"
    assert by_data.cycle_error == 0


def test_auto_is_never_worse_than_without_the_order_by_data(
    trained_states: dict[str, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nets()["cnn"]()
    states = [trained_states["cnn0"], trained_states["cnn1"], trained(nets()["cnn"], 2)]
    model.load_state_dict(states[0])
    networks = [model.eval(), *states[1:]]
    options: dict[str, Any] = {"device": "cpu", "search": "descent", "examples": 300}
    found = merge(networks, "digits", **options)
    fitted = {one.order for one in found.trials if one.method == "refit"}
    assert fitted == {"weights", "weights and data, 0.3"}
    monkeypatch.setattr(Orders, "alphas", ())
    before = merge(networks, "digits", **options)
    kept = {(one.order, one.method): one.loss for one in found.trials}
    for trial in before.trials:
        assert kept[trial.order, trial.method] == trial.loss
    assert (found.chosen.loss or 0) <= (before.chosen.loss or 0)


def test_what_does_not_fit_the_memory_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, data = three()
    options: dict[str, Any] = {"device": "cpu", "search": "descent", "method": "average"}
    spec = discover(models[0], data[0][:2])
    pairs = 3 * 8 * sum(spec.units(group) ** 2 for group in spec.groups)
    for memory, order in ((2 * pairs, "weights and data, 0.3"), (2 * pairs - 1, "weights")):
        monkeypatch.setenv("GPU_ALIGN_MEMORY", str(memory))
        found = merge(models, data, **options)
        assert found.chosen.order == order
        assert any("does not fit the memory" in note for note in found.notes) == (
            order == "weights"
        )
    naive = merge(models, data, **options | {"method": "naive"})
    assert not any("does not fit the memory" in note for note in naive.notes)


def test_an_order_by_data_is_resumed_search_by_search(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumed_search_by_search(
        monkeypatch, lambda needed: needed - 1, *MLP, *DIGITS, "--method", "average"
    )
