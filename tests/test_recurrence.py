"""Recurrent layers: the hidden units of each layer and direction, and their projections."""

from collections.abc import Callable

import pytest
import torch
from networks import Graph
from symmetry_cases import (
    Case,
    Sizes,
    assert_groups,
    assert_random_permutations_preserve,
    parameter,
)
from torch import Tensor, nn

from gpu_align import discover
from gpu_align._symmetry import Fixed, Units

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
Read = Callable[[Tensor, tuple[Tensor, ...]], Tensor]


def outputs(out: Tensor, states: tuple[Tensor, ...]) -> Tensor:
    return out


def case(
    layer: nn.Module,
    sizes: Sizes,
    *,
    read: Read = outputs,
    width: int = 4,
    shape: tuple[int, ...] = (5, 2, 3),
    start: Callable[[Tensor], object] = lambda x: None,
) -> Case:
    """A recurrent layer of 3 inputs, and a linear layer on what `read` takes of its results."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        out, states = s.layer(x, start(x))
        return s.head(read(out, states if isinstance(states, tuple) else (states,)))

    return Case(lambda: Graph(forward, layer=layer, head=nn.Linear(width, 2)), shape, sizes)


def cells(cell: nn.Module, sizes: Sizes) -> Case:
    """A cell called step by step, from no state."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(0):
            state = s.cell(step, state)
        return s.head(state[0] if isinstance(state, tuple) else state)

    return Case(lambda: Graph(forward, cell=cell, head=nn.Linear(4, 2)), (5, 2, 3), sizes)


def encoder_decoder() -> nn.Module:
    """The last states of both layers start those of the decoder."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        out, states = s.encoder(x)
        return s.head(s.decoder(out.flip(0), states)[0])

    return Graph(
        forward,
        encoder=nn.LSTM(3, 4, 2),
        decoder=nn.LSTM(4, 4, 2),
        head=nn.Linear(4, 2),
    )


def learned_start() -> nn.Module:
    """A first state that is a parameter; its layers have one axis of units, so one order."""
    return Graph(
        lambda s, x: s.head(s.layer(x, s.start.expand(2, 2, 4).contiguous())[0]),
        layer=nn.GRU(3, 4, 2),
        start=parameter(2, 1, 4),
        head=nn.Linear(4, 2),
    )


def attention_over_time() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        out, state = s.layer(x)
        weights = (out @ s.score(state[-1])[..., None]).softmax(1)
        return s.head((weights * out).sum(1))

    return Graph(
        forward,
        layer=nn.GRU(3, 4, batch_first=True),
        score=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )


CASES = {
    **{name: case(kind(3, 4), [4]) for name, kind in KINDS.items()},
    **{f"{name}_layers": case(kind(3, 4, 3), [4, 4, 4]) for name, kind in KINDS.items()},
    **{
        f"{name}_directions": case(kind(3, 4, bidirectional=True), [4, 4], width=8)
        for name, kind in KINDS.items()
    },
    "relu": case(nn.RNN(3, 4, nonlinearity="relu"), [4]),
    "without_bias": case(nn.LSTM(3, 4, bias=False), [4]),
    "batch_first": case(nn.GRU(3, 4, batch_first=True), [4], shape=(2, 5, 3)),
    "no_batch": case(nn.GRU(3, 4, 2), [4, 4], shape=(5, 3)),
    "layers_and_directions": case(nn.GRU(3, 4, 2, bidirectional=True), [4] * 4, width=8),
    # The projection is what goes on; the cells are inside.
    "projected": case(nn.LSTM(3, 4, proj_size=2), [4, 2], width=2),
    "projected_directions": case(
        nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True), [4, 2] * 4, width=4
    ),
    "last_state": case(nn.GRU(3, 4), [4], read=lambda out, states: states[0][-1]),
    "last_cell": case(nn.LSTM(3, 4), [4], read=lambda out, states: states[1].squeeze(0)),
    # The first layer has an order of its own as long as its state is read by itself.
    "states_apart": case(
        nn.GRU(3, 4, 2), [4, 4], read=lambda out, states: torch.cat([*states[0]], -1), width=8
    ),
    "states_of_directions": case(
        nn.LSTM(3, 4, bidirectional=True),
        [4, 4],
        read=lambda out, states: torch.cat([states[0][-2], states[1][-1]], -1),
        width=8,
    ),
    "states_added": case(nn.GRU(3, 4, 2), [4], read=lambda out, states: states[0].sum(0)),
    "directions_added": case(
        nn.GRU(3, 4, bidirectional=True),
        [4],
        read=lambda out, states: out[..., :4] + out[..., 4:],
    ),
    "zero_start": case(
        nn.LSTM(3, 4, 2),
        [4, 4],
        start=lambda x: (torch.zeros(2, 2, 4).to(x), torch.zeros(2, 2, 4, dtype=x.dtype)),
    ),
    "constant_start": case(nn.GRU(3, 4, 2), [4, 4], start=lambda x: x.new_full((2, 2, 4), 0.5)),
    "counted_start": case(
        nn.GRU(3, 4), [], start=lambda x: torch.arange(4.0).to(x).expand(1, 2, 4).contiguous()
    ),
    "lstm_cell": cells(nn.LSTMCell(3, 4), [4]),
    "gru_cell": cells(nn.GRUCell(3, 4), [4]),
    "rnn_cell": cells(nn.RNNCell(3, 4), [4]),
    "relu_cell": cells(nn.RNNCell(3, 4, bias=False, nonlinearity="relu"), [4]),
    "encoder_decoder": Case(encoder_decoder, (5, 2, 3), [4, 4]),
    "learned_start": Case(learned_start, (5, 2, 3), [4]),
    "attention_over_time": Case(attention_over_time, (2, 5, 3), [4]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_are_those_worked_out_by_hand(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    spec = discover(model, inputs, verify=False)
    assert_groups(spec, case.sizes)
    assert_random_permutations_preserve(spec, model, inputs)


def test_axes_of_gates() -> None:
    model, inputs = nn.LSTM(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    spec = discover(Graph(lambda s, x: s.layer(x)[0].sum(-1), layer=model), inputs)
    forward, backward = spec.groups
    found = {
        name: [list(axis.factors()) for axis in spec.tensors[name].axes]
        for name in ("layer.weight_hh_l0", "layer.bias_ih_l0_reverse")
    }
    assert found == {
        "layer.weight_hh_l0": [[Fixed(4), Units(4, forward)], [Units(4, forward)]],
        "layer.bias_ih_l0_reverse": [[Fixed(4), Units(4, backward)]],
    }


def test_recurrent_layers_are_left_as_they_were() -> None:
    model, inputs = nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    parameters, before = list(model.parameters()), model(inputs)[0]
    discover(model, inputs)
    pairs = zip(model.parameters(), parameters, strict=True)
    assert all(after is parameter for after, parameter in pairs)
    assert torch.equal(model(inputs)[0], before)
