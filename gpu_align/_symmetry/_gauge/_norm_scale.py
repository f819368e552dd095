"""Layers that only a batch norm reads: the scale of each of their rows is free."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from gpu_align._symmetry._memory import overlapping
from gpu_align._symmetry._op import Op
from gpu_align._symmetry._parts import NormScale
from gpu_align._symmetry._propagation import Traced

# The last of each is what the others are decomposed into.
_LAYERS = ("linear", "conv1d", "conv2d", "conv3d", "convolution")
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


def find_norm_scales(traced: Traced, state: Mapping[str, Tensor]) -> Iterator[NormScale]:
    """Yield the layers whose outputs go into one batch norm and nowhere else.

    Args:
        traced: a model in evaluation mode.
        state: state-dict name -> tensor.
    """
    uses = Counter({name: 0 for name in traced.stored.values()})
    for node, name in traced.stored.items():
        uses[name] += len(node.users)
    shared = overlapping(state)
    for node in traced.graph.nodes:
        scale = _norm_scale(node, traced.stored)
        if scale is not None and all(
            uses[name] == 1 and name not in shared and torch.is_floating_point(state[name])
            for name in scale.names
        ):
            yield scale


def _norm_scale(norm: fx.Node, stored: Mapping[fx.Node, str]) -> NormScale | None:
    if Op(norm).name not in _NORMS:
        return None
    to, layer = Op(norm).arguments(), norm.args[0]
    if to.get("training") or not isinstance(layer, fx.Node) or Op(layer).name not in _LAYERS:
        return None
    made = Op(layer).arguments()
    if made.get("transposed"):
        return None
    # A batch norm scales along the second axis, which must be that of the rows.
    rank = 2 if Op(layer).name == "linear" else made["weight"].meta["val"].ndim
    if len(layer.users) > 1 or layer.meta["val"].ndim != rank:
        return None
    nodes = [made["weight"], made.get("bias"), to["running_mean"], to["running_var"]]
    weight, bias, mean, variance = [stored.get(node) for node in nodes]
    if weight is None or mean is None or variance is None or (nodes[1] is not None) != bool(bias):
        return None
    names = {weight, bias, mean, variance}
    return NormScale(weight, bias, mean, variance, to["eps"]) if len(names) == 4 else None
