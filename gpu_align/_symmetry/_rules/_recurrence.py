"""Recurrent layers: the hidden units of a step are the inputs of the next one.

The weights [gates x hidden, in] and [gates x hidden, state] hold the gates one after another; each
gate has the same hidden units. The state is the hidden units, or their projection. Of signs and
scales gates let nothing pass but what is read from the input.
"""

from collections.abc import Sequence
from typing import Any

from gpu_align._symmetry._classes import AxisClass, Structure, concat
from gpu_align._symmetry._power import (
    AxisPowers,
    TensorPowers,
    UnmatchedError,
    homogeneous,
    odd,
    placed,
    set_equal,
    set_opposite,
    set_zero,
)
from gpu_align._symmetry._rules._table import (
    Call,
    Constant,
    PowerCall,
    axis_rule,
    broadcast,
    power_rule,
    unknown,
)
from gpu_align._symmetry._splits import OpenSplit, TensorAxes, slices_along

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CELLS = {f"{name}_cell": name for name in GATES}
RECURRENT = frozenset({*GATES, *CELLS})


@axis_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _layers(
    call: Call,
    input: TensorAxes,
    hx: Any,
    params: list[TensorAxes],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    **_: Any,
) -> tuple[TensorAxes, ...]:
    """Layers one after another, each in one direction or two; outputs of directions are joined."""
    time = (1 if batch_first else 0) if len(input) == 3 else 0
    batch = TensorAxes(axis for n, axis in enumerate(input[:-1]) if n != time)
    call.pin(input[time : time + 1])
    directions = 2 if bidirectional else 1
    runs = num_layers * directions
    starts = [_slices(call, axes, batch) for axes in (hx if isinstance(hx, list) else [hx])]
    size = len(params) // runs
    features = [input[-1]]
    states: list[TensorAxes] = []
    for number in range(runs):
        parameters = _Parameters(params[number * size : (number + 1) * size], has_biases)
        if number % directions == 0 and number:
            features = [state[0] for state in states[-directions:]]
        state = _step(call, batch, concat(features), parameters)
        states.append(state)
        for axis, units in zip(state, starts, strict=False):
            for start in units[number : number + 1]:
                call.unify(axis, start)
    last = concat([state[0] for state in states[-directions:]])
    finals = [_stacked(call, [state[n] for state in states], batch) for n in range(len(starts))]
    return TensorAxes((*input[:-1], last)), *finals


class _Parameters:
    """The parameters of one layer in one direction."""

    def __init__(self, params: list[TensorAxes], has_biases: bool) -> None:
        self.input, self.hidden, *rest = params
        self.biases = rest[:2] if has_biases else []
        self.projection = rest[len(self.biases) :]


def _step(
    call: Call, batch: TensorAxes, features: AxisClass, parameters: _Parameters
) -> TensorAxes:
    """Return the axes of the state and of the cell; these are the same without a projection."""
    gates = GATES[CELLS.get(call.op, call.op)]
    cell = AxisClass(parameters.hidden[0].size // gates)
    state = cell
    for weight in (parameters.input, parameters.hidden, *parameters.biases):
        call.refine(weight[0], Structure.PRODUCT, [call.pinned(gates), cell])
    for state, inner in parameters.projection:
        call.unify(inner, cell)
        call.visit((*batch, state, cell))
    call.unify(parameters.input[1], features)
    call.unify(parameters.hidden[1], state)
    call.visit((*batch, cell, features))
    call.visit((*batch, cell, state))
    return TensorAxes((state, cell))


def _slices(call: Call, axes: TensorAxes, batch: TensorAxes) -> list[AxisClass]:
    """Return the units of each first state [runs, (batch), units]; none where all are the same."""
    runs = axes[0].size
    if isinstance(axes, Constant):
        return []
    for a, b in zip(axes[1:-1], batch, strict=True):
        call.unify(a, b)
    split = slices_along(axes, 0)
    if split is not None and axes[1:][-1:] == split.axes[1:]:
        return [part[axes[-1]] for part in split.cut(axes[0], [1] * runs)]
    call.pin(axes[:1])
    return [axes[-1]] * runs


def _stacked(call: Call, units: list[AxisClass], batch: TensorAxes) -> TensorAxes:
    """Return the axes of the last states of all runs; slices of it may be taken apart."""
    if len(units) == 1:
        return TensorAxes((AxisClass(1), *batch, units[0]))
    first, last = OpenSplit(concat(units), [len(units), units[0].size], call.reason).axes
    return TensorAxes((first, *batch, last))


@axis_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(
    call: Call,
    input: TensorAxes,
    hx: Any,
    w_ih: TensorAxes,
    w_hh: TensorAxes,
    b_ih: TensorAxes | None = None,
    b_hh: TensorAxes | None = None,
) -> Any:
    biases = [bias for bias in (b_ih, b_hh) if bias is not None]
    batch = TensorAxes(input[:-1])
    state, _ = _step(call, batch, input[-1], _Parameters([w_ih, w_hh, *biases], bool(biases)))
    out = TensorAxes((*batch, state))
    for start in hx if isinstance(hx, list) else [hx]:
        if not isinstance(start, Constant):
            broadcast(call, [out, start])
    return (out, out) if len(call.shapes) == 2 else out


@power_rule("lstm", "gru")
def _gated_layer_powers(
    call: PowerCall,
    input: TensorPowers,
    hx: Any,
    params: list[TensorPowers],
    num_layers: int,
    bidirectional: bool,
    **_: Any,
) -> Any:
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    read = [params[number * size] for number in range(directions)]
    _read_powers(input, read)
    others = [weight for weight in params if not any(weight is other for other in read)]
    return unknown(call, [hx, others])


@power_rule("lstm_cell", "gru_cell")
def _gated_cell_powers(
    call: PowerCall, input: TensorPowers, w_ih: TensorPowers, **others: Any
) -> Any:
    _read_powers(input, [w_ih])
    return unknown(call, others)


def _read_powers(input: TensorPowers, weights: Sequence[TensorPowers]) -> None:
    set_zero(input[:-1])
    for weight in weights:
        set_opposite(input[-1], weight[1])
        set_zero([weight[0]])


@power_rule("rnn_tanh", "rnn_relu")
def _recurrent_layer_powers(
    call: PowerCall,
    input: TensorPowers,
    hx: TensorPowers,
    params: list[TensorPowers],
    num_layers: int,
    bidirectional: bool,
    **_: Any,
) -> tuple[TensorPowers, ...]:
    """Layers one after another, each in one direction or two."""
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    set_zero(input[:-1])
    features = input[-1]
    states: list[AxisPowers] = []
    for number in range(num_layers * directions):
        if number % directions == 0 and number:
            features = _side_by_side(states[-directions:])
        weights = params[number * size : (number + 1) * size]
        states.append(_step_powers(call, features, *weights))
    last = _side_by_side(states[-directions:])
    everything = _side_by_side(states)
    _tie_start(hx, everything)
    finals = placed(call.outputs[1], everything.powers)
    return TensorPowers((*call.output[:-1], AxisPowers(call.output[-1].axis, last.powers))), finals


@power_rule("rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_cell_powers(
    call: PowerCall,
    input: TensorPowers,
    hx: TensorPowers,
    w_ih: TensorPowers,
    w_hh: TensorPowers,
    b_ih: TensorPowers | None = None,
    b_hh: TensorPowers | None = None,
) -> TensorPowers:
    set_zero(input[:-1])
    biases = [bias for bias in (b_ih, b_hh) if bias is not None]
    state = _step_powers(call, input[-1], w_ih, w_hh, *biases)
    _tie_start(hx, state)
    return TensorPowers((*call.output[:-1], AxisPowers(call.output[-1].axis, state.powers)))


def _step_powers(
    call: PowerCall,
    features: AxisPowers,
    w_ih: TensorPowers,
    w_hh: TensorPowers,
    *biases: TensorPowers,
) -> AxisPowers:
    """Return the hidden units of act(w_ih x + w_hh h + biases), where h is what it returned."""
    set_opposite(features, w_ih[1])
    set_opposite(w_hh[0], w_hh[1])
    for other in (w_hh, *biases):
        set_equal(w_ih[0], other[0])
    return odd(w_ih[0]) if "tanh" in call.op else homogeneous(w_ih[0])


def _tie_start(hx: TensorPowers, states: AxisPowers) -> None:
    """Say that the first states [runs, (batch), units] are states; zeros always are."""
    if hx.is_zero and not hx.powers:
        return
    if not set(states.leaves) <= set(hx.leaves):
        raise UnmatchedError
    set_zero(
        AxisPowers(axis.axis, tuple(p for p in axis.powers if p.leaf not in states.leaves))
        for axis in hx
    )
    [first] = placed(TensorPowers([states]), hx.powers)
    set_equal(first, states)


def _side_by_side(states: Sequence[AxisPowers]) -> AxisPowers:
    return AxisPowers(states[0].axis, tuple(power for axis in states for power in axis.powers))
