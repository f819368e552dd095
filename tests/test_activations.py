"""Activations: what is found by tracing equals what hooks placed by hand see."""

from collections.abc import Callable
from functools import partial

import architectures as own
import hf_architectures as hf
import numpy as np
import pytest
import sequence_architectures as sequence
import torch
from architectures import Example
from marks import slow
from scipy.optimize import linear_sum_assignment
from test_architectures import SMALL
from torch import Tensor, nn

from gpu_align import InputError, ModelError, Permutation
from gpu_align._network import (
    Batch,
    Examples,
    Moments,
    Site,
    Traces,
    find_sites,
    unit_statistics,
)
from gpu_align._symmetry import trace_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)

Sight = tuple[str, Callable[[Tensor], Tensor]]
"""A module, and how the units of a group are cut out of what it is given: -> [samples, units]."""


def channels(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """Channels of a map [b, c, h, w], or of a vector [b, c]."""
    return lambda x: x[:, start:stop].movedim(1, -1).reshape(-1, stop - start)


def features(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """Entries of the last axis."""
    return lambda x: x[..., start:stop].reshape(-1, stop - start)


BY_HAND: dict[str, tuple[Callable[[], Example], dict[str, list[Sight]]]] = {
    "dense_net": (
        own.dense_net,
        {
            "0": [(n, channels(0, 4)) for n in ("1.0.conv1", "1.1.conv1", "4")],
            "1.0.conv1": [("1.0.conv2", channels(0, 5))],
            "1.0.conv2": [(n, channels(4, 7)) for n in ("1.1.conv1", "4")],
            "1.1.conv2": [("4", channels(7, 10))],
            "6.1.conv2": [("6.2.conv1", channels(8, 10)), ("9.2", channels(8, 10))],
        },
    ),
    "se_resnet": (
        own.se_resnet,
        {
            "0.0": [
                ("1.branch.0.0", channels(0, 6)),
                ("1.branch.3.squeeze", channels(0, 6)),
                ("2.branch.0.0", channels(0, 6)),
            ],
            "2.branch.0.0": [("2.branch.1", channels(0, 7))],
            "2.branch.3.squeeze": [("2.branch.3.excite", features(0, 3))],
        },
    ),
    "gpt2": (
        partial(hf.gpt2, "sdpa"),
        {
            "transformer.wte": [
                ("transformer.h.0.attn.c_attn", features(0, 12)),
                ("transformer.h.0.mlp.c_fc", features(0, 12)),
                ("transformer.h.1.attn.c_attn", features(0, 12)),
                ("transformer.h.1.mlp.c_fc", features(0, 12)),
                ("lm_head", features(0, 12)),
            ],
            "transformer.h.1.attn.c_attn": [
                ("transformer.h.1.attn.c_attn()", features(0, 12)),
                ("transformer.h.1.attn.c_attn()", features(12, 24)),
            ],
            "transformer.h.1.attn.c_attn[1]": [("transformer.h.1.attn.c_proj", features(0, 12))],
            "transformer.h.0.mlp.c_fc": [("transformer.h.0.mlp.c_proj", features(0, 10))],
        },
    ),
    "lstm": (
        sequence.lstm,
        {"embed": [("lstm", features(0, 5))], "lstm[1]": [("lstm()", features(0, 6))]},
    ),
    "depthwise_separable": (
        own.depthwise_separable,
        {
            "0.0": [("2.0", channels(0, 4))],
            "2.0": [("2.0()", channels(0, 6))],  # each channel is read on its own
            "3.0": [("4.0", channels(0, 12))],
            "4.0": [("5.2", features(0, 5))],
        },
    ),
}


def others(state: dict[str, Tensor], seed: int = 5) -> dict[str, Tensor]:
    """Return other weights of the same shapes; running variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor * (1 + 0.4 * torch.rand(tensor.shape, generator=generator).to(tensor))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def seen(model: nn.Module, state: dict[str, Tensor], inputs: object) -> dict[str, Tensor]:
    """Run a model and return what each module is given, and as NAME() what it returns."""
    found: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, given: tuple[object, ...], result: object) -> None:
        if given and isinstance(given[0], Tensor):
            found[name] = given[0].detach().clone()
        result = result[0] if isinstance(result, tuple) else result
        if isinstance(result, Tensor):
            found[f"{name}()"] = result.detach().clone()

    handles = [
        module.register_forward_hook(partial(hook, name)) for name, module in model.named_modules()
    ]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        model.eval()(inputs)
    model.load_state_dict(before)
    for handle in handles:
        handle.remove()
    return found


def by_group(statistics: dict[Site, Moments]) -> dict[str, list[Moments]]:
    found: dict[str, list[Moments]] = {}
    for site, moments in statistics.items():
        found.setdefault(site.group, []).append(moments)
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_statistics_equal_those_of_hooks_placed_by_hand(name: str) -> None:
    make, places = BY_HAND[name]
    model, inputs = make()
    a = {n: t.clone() for n, t in model.state_dict().items()}
    b = others(a)
    found = by_group(unit_statistics(Traces(model), Examples.of(inputs), a, b))
    values = [seen(model, state, inputs) for state in (a, b)]
    for group, sights in places.items():
        assert len(found[group]) == len(sights), group
        for moments, (module, cut) in zip(found[group], sights, strict=True):
            x, y = (cut(value[module]).double().numpy() for value in values)
            count, centred = len(x), (x - x.mean(0), y - y.mean(0))
            assert moments.count == count
            for got, expected in (
                (moments.mean_a, x.mean(0)),
                (moments.mean_b, y.mean(0)),
                (moments.covariance, centred[0].T @ centred[1] / count),
                (moments.products, x.T @ y / count),
                (moments.deviations[0], x.std(0)),
                (moments.deviations[1], y.std(0)),
            ):
                torch.testing.assert_close(got, torch.from_numpy(expected).to(got), msg=group)


WITHOUT: dict[str, set[str]] = {
    # Their units lie beside the channels everywhere, whose order is not known either.
    "mlp_mixer": {"blocks.0.tokens.0", "blocks.1.tokens.0"},
}


IN_SHORT = ("group_norm_resnet", "lstm_cell", "packed_vit", "mlp_mixer", "vit_eager", "convnext")


@pytest.mark.parametrize("name", slow(SMALL, but=IN_SHORT))
def test_every_group_is_seen_somewhere(name: str) -> None:
    model, inputs = SMALL[name][0]()
    traced = trace_model(model, inputs)
    groups = traced.spec.groups
    with_units = {site.group for site in find_sites(traced)}
    parents = {group.parent for group in groups.values()}
    missing = {group for group in groups if group not in with_units | parents}
    assert missing == WITHOUT.get(name, set())


@pytest.mark.parametrize(
    "name",
    slow(("dense_net", "gpt2", "projected_lstm", "siren", "llama"), but=("dense_net", "siren")),
)
def test_a_permuted_copy_has_the_statistics_of_its_units(name: str) -> None:
    model, inputs = SMALL[name][0]()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    spec = trace_model(model, inputs).spec
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(3))
    moved = planted.apply(state)
    close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-6)  # llama's norms are float32
    for site, m in unit_statistics(Traces(model), Examples.of(inputs), state, moved).items():
        order = planted.perms[site.group]
        signs = torch.ones(len(order), dtype=torch.float64)
        if site.signed:
            signs = planted.signs[site.group].double()
        close(m.mean_b, signs * m.mean_a[order])
        close(m.deviations[1], m.deviations[0][order])
        alive = (m.deviations[1] > 1e-6).double()
        close(m.correlation[order, torch.arange(len(order))], signs * alive)


def test_correlations_recover_a_planted_order_and_its_signs() -> None:
    model, _ = own.siren()
    inputs = own.normal(200, 2)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    spec = trace_model(model, inputs).spec
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(0))
    found = unit_statistics(Traces(model), Examples.of(inputs), state, planted.apply(state))
    assert {site.group for site in found} == set(spec.groups)
    for site, moments in found.items():
        assert site.signed
        correlation = moments.correlation.T
        _, order = linear_sum_assignment(-correlation.abs().numpy())
        assert order.tolist() == planted.perms[site.group].tolist()
        signs = correlation[torch.arange(len(order)), torch.from_numpy(order)].sign()
        assert signs.tolist() == planted.signs[site.group].tolist()


def test_batches_are_merged_exactly_whatever_their_sizes_and_lengths() -> None:
    model, _ = sequence.rnn()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    lots = tuple(Batch(own.normal(9, length, 4)) for length in (5, 3))
    done: list[tuple[int, int]] = []
    statistics = unit_statistics(
        *(Traces(model), Examples(lots), state, others(state)),
        batch_size=4,
        progress=lambda *numbers: done.append(numbers),
    )
    [moments] = statistics.values()
    assert done == [(4, 18), (8, 18), (9, 18), (13, 18), (17, 18), (18, 18)]
    x, y = (
        torch.cat([features(0, 6)(seen(model, s, lot.inputs)["head"]) for lot in lots])
        for s in (state, others(state))
    )
    assert moments.count == len(x) == 9 * 8
    torch.testing.assert_close(
        moments.covariance, torch.cov(torch.cat([x, y], 1).T, correction=0)[:6, 6:]
    )
    torch.testing.assert_close(moments.deviations[1], y.std(0, correction=0))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (1e4 + torch.rand(3, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = Moments.of(a, b)
    parts = Moments.of(a[:, :7], b[:, :7]).merged(Moments.of(a[:, 7:], b[:, 7:]))
    for name in ("covariance", "products", "correlation", "mean_b"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=0)
    expected = torch.from_numpy(np.corrcoef(a.numpy(), b.numpy())[:3, 3:])
    torch.testing.assert_close(whole.correlation, expected)


def test_samples_behind_a_mask_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    behind = torch.arange(20) % 3 == 0
    masked = [x.masked_fill(behind, -torch.inf) for x in (a, b)]
    found, expected = Moments.of(*masked), Moments.of(a[:, ~behind], b[:, ~behind])
    assert found.count == expected.count == 13
    assert torch.equal(found.correlation, expected.correlation)
    nothing = Moments.of(masked[0][:, behind], masked[1][:, behind])
    for merged in (found.merged(nothing), nothing.merged(found)):
        assert torch.equal(merged.correlation, expected.correlation)
    assert not nothing.correlation.any()
    for broken in ((masked[0], b), (a.masked_fill(behind, torch.nan),) * 2):
        assert not Moments.of(*broken).correlation.isfinite().all()


def test_a_constant_unit_correlates_with_nothing() -> None:
    varied = torch.tensor([[0.1] * 6, [1.0, 2, 3, 4, 5, 7]])
    correlation = Moments.of(varied, varied).correlation
    assert correlation.tolist() == [[0, 0], [0, pytest.approx(1)]]


def test_an_exported_program_is_run_on_batches_of_its_own_size() -> None:
    model, inputs = own.siren()
    program = torch.export.export(model.eval(), (inputs,))
    state = dict(model.state_dict())
    examples = Examples.of(own.normal(15, 2))  # the program takes 6
    statistics = unit_statistics(Traces(program), examples, state, state)
    assert {moments.count for moments in statistics.values()} == {12}
    with pytest.raises(InputError, match="batches of 6"):
        unit_statistics(Traces(program), examples.take(5), state, state)


def test_weights_of_another_shape_are_refused() -> None:
    model, inputs = own.siren()
    state = dict(model.state_dict()) | {"head.bias": torch.zeros(4)}
    with pytest.raises(ModelError, match=r"'head.bias' has the shape \[4\]"):
        unit_statistics(Traces(model), Examples.of(inputs), state, state)


def test_what_is_made_of_weights_alone_is_computed_once_for_an_op() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.rand(3, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            for _ in range(40):  # 2^40 sums if each were computed anew
                weight = (weight + weight) / 2
            return self.head(torch.relu(x @ weight))

    model = Doubled()
    state = dict(model.state_dict())
    [moments] = unit_statistics(Traces(model), Examples.of(torch.rand(9, 3)), state, state).values()
    assert moments.count == 9
