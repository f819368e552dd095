"""Recalibration: weights and statistics of a merged network set right on data, op after op.

One walk does it, in which the parents and the merged network pass each op together: what is
measured there corrects the op before anything after it is run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx

from gpu_align._merge._layers import Affine, Layer, layer_of
from gpu_align._merge._regression import Normal, ridge_fit
from gpu_align._network import Step, Walk
from gpu_align._symmetry import Op, TracedModel

_ENTRIES = 2**22
"""Most entries of the inputs of a layer that are laid out at once."""


@dataclass(frozen=True)
class Family:
    """The merged network among its parents in a walk, and what they are measured on.

    Attributes:
        weights: of the parents in the mean, summing to 1; the merged network comes after them.
        fit, held: numbers of the batches that are fitted, and of those that judge.
    """

    weights: Sequence[float]
    fit: Sequence[int]
    held: Sequence[int]

    @property
    def merged(self) -> int:
        """Number of the merged network among the states."""
        return len(self.weights)

    def goal(self, step: Step, batch: int) -> Tensor:
        """Return the mean of what the parents have."""
        values = [step.values[parent][batch] for parent in range(len(self.weights))]
        return sum((w * v for w, v in zip(self.weights, values, strict=True)), torch.zeros(()))


class Method(ABC):
    """What is done to a layer of the merged network."""

    @abstractmethod
    def mend(self, step: Step, layer: Layer, family: Family) -> bool:
        """Change the weights; say whether they were changed."""


class Norms(Method):
    """Nothing but what `recalibrate` does to batch norms: their statistics are measured anew."""

    def mend(self, step: Step, layer: Layer, family: Family) -> bool:
        """See `Method.mend`."""
        return False


@dataclass(frozen=True)
class Repair(Method):
    """Give every unit the mean and the deviation that its parents have on average.

    Source: Jordan et al., REPAIR (ICLR 2023), section 4; without the means, RESCALE.
    """

    means: bool = True

    def mend(self, step: Step, layer: Layer, family: Family) -> bool:
        """See `Method.mend`."""
        if _goes_to_norm(step.node) or (isinstance(layer, Affine) and layer.name != "batch_norm"):
            return False
        own_mean, own_deviation = self._of(step, layer, family, family.merged)
        parents = [self._of(step, layer, family, number) for number in range(family.merged)]
        pairs = list(zip(family.weights, parents, strict=True))
        mean = sum((w * m for w, (m, _) in pairs), torch.zeros_like(own_mean))
        deviation = sum((w * d for w, (_, d) in pairs), torch.zeros_like(own_mean))
        known = (own_deviation > 1e-6 * own_mean.abs()) & (own_deviation > 0)
        scale = torch.where(known, deviation / own_deviation, 1.0)
        shift = mean - own_mean * scale if self.means else own_mean * (1 - scale)
        dtype = layer.matrix().dtype
        layer.scale_outputs(scale.to(dtype), None if layer.bias is None else shift.to(dtype))
        return True

    @staticmethod
    def _of(step: Step, layer: Layer, family: Family, state: int) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation of each output, [blocks, n] each, float64."""
        rows = [layer.outputs(step.values[state][batch]).to(torch.float64) for batch in family.fit]
        count = sum(part.shape[1] for part in rows)
        mean = sum((part.sum(1) for part in rows), torch.zeros(())) / count
        square = sum(((part - mean[:, None]).square().sum(1) for part in rows), torch.zeros(()))
        return mean, (square / count).sqrt()


@dataclass(frozen=True)
class Refit(Method):
    """Fit every layer by least squares to what its parents give on average.

    The inputs are those of the merged network, whose earlier layers are fitted already. The ridge
    pulls towards the averaged weights.

    Source: Nasery et al., PLeaS (2024), section 3.2, there on the parents' inputs.
    """

    def mend(self, step: Step, layer: Layer, family: Family) -> bool:
        """See `Method.mend`."""
        fit, held = (self._sums(step, layer, family, part) for part in (family.fit, family.held))
        found = ridge_fit(fit, held, bias=layer.bias is not None)
        matrix = layer.matrix()
        shift = None
        if layer.bias is not None:
            shift = layer.bias.detach().reshape(found.shift.shape) + found.shift
            shift = shift.to(matrix.dtype)
        layer.write((matrix + found.weight).to(matrix.dtype), shift)
        return True

    @staticmethod
    def _sums(step: Step, layer: Layer, family: Family, batches: Sequence[int]) -> Normal:
        def each() -> Iterator[Normal]:
            for batch in batches:
                residual = family.goal(step, batch) - step.values[family.merged][batch]
                arguments = step.arguments(family.merged, batch)
                x, r = layer.inputs(arguments), layer.outputs(residual)
                yield Normal.of(x, r)

        return reduce(Normal.merged, each())


def recalibrate(
    walk: Walk,
    family: Family,
    method: Method,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Set a merged network right and return its state dict.

    Batch norms get the mean and the variance of what they are given, whatever the method.

    Args:
        walk: of the parents and of the merged network, which is changed.
        family: which is which.
        method: what is done to the layers.
        progress: called with the number of ops done, and of all.
    """
    own = _only_users(walk.models[0])
    with torch.no_grad():
        for step in walk.steps():
            op, arguments = Op(step.node).name, step.arguments(family.merged, 0)
            changed = op == "batch_norm" and _measure(step, family)
            if changed:
                step.run_again(family.merged)
            layer = layer_of(op, arguments, step.values[family.merged][0])
            if layer is not None and _is_writable(layer, walk, family, own, step):
                if method.mend(step, layer, family):
                    step.run_again(family.merged)
            progress(step.number + 1, len(walk))
    return walk.states[family.merged]


def _measure(step: Step, family: Family) -> bool:
    """Give a batch norm the mean and the variance of its inputs; False if it has none."""
    calls = [step.arguments(family.merged, batch) for batch in family.fit]
    mean, variance = calls[0]["running_mean"], calls[0]["running_var"]
    if mean is None:
        return False
    rows = [call["input"].transpose(0, 1).flatten(1).to(torch.float64) for call in calls]
    count = sum(part.shape[1] for part in rows)
    found = sum((part.sum(1) for part in rows), torch.zeros(())) / count
    square = sum(((part - found[:, None]).square().sum(1) for part in rows), torch.zeros(()))
    mean.copy_(found)
    variance.copy_(square / max(count - 1, 1))
    return True


def _goes_to_norm(node: fx.Node) -> bool:
    """Whether nothing but batch norms reads a value."""
    return bool(node.users) and all(Op(user).name == "batch_norm" for user in node.users)


def _only_users(model: TracedModel) -> dict[str, set[fx.Node]]:
    """Return for each stored tensor the ops that use it, tied names as one."""
    computed = set(model.computed)
    users: dict[str, set[fx.Node]] = {}
    for place, name in model.stored.items():
        pending = list(place.users)
        found = users.setdefault(model.spec.ties.get(name, name), set())
        while pending:
            node = pending.pop()
            if node in computed:
                found.add(node)
            else:
                pending += node.users
    return users


def _is_writable(
    layer: Layer, walk: Walk, family: Family, users: dict[str, set[fx.Node]], step: Step
) -> bool:
    """Whether the weights of a layer are stored, and no other op uses them."""
    model = walk.models[0]
    owners: dict[int, set[fx.Node]] = {}
    for name, tensor in walk.states[family.merged].items():
        owners.setdefault(tensor.untyped_storage().data_ptr(), set()).update(
            users.get(model.spec.ties.get(name, name), set())
        )
    for used in (layer.weight, layer.bias):
        if used is not None and owners.get(used.untyped_storage().data_ptr()) != {step.node}:
            return False
    return True
