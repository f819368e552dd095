"""Gradients of pointwise ops, where a forward takes gradients itself: they are pointwise too."""

from typing import Any

from gpu_align._symmetry._rules._table import Call, axis_rule, broadcast
from gpu_align._symmetry._splits import TensorAxes


@axis_rule(
    *("tanh_backward", "sigmoid_backward", "threshold_backward", "softplus_backward"),
    *("silu_backward", "gelu_backward", "elu_backward", "leaky_relu_backward", "mish_backward"),
    *("log_sigmoid_backward", "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward"),
    *("softshrink_backward", "hardshrink_backward", "logit_backward"),
)
def _pointwise_gradient(call: Call, **arguments: Any) -> TensorAxes:
    given = [value for value in arguments.values() if isinstance(value, TensorAxes)]
    return broadcast(call, [axes for axes in given if len(axes) == len(call.shape)])
