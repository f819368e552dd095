"""Recalibration: weights and statistics of merged networks set right on data, op after op.

One walk does it, in which parents and merged networks pass each op together: what is measured
there corrects the op before anything after it is run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx

from gpu_align._merge._layers import Affine, Arguments, Layer, layer_of, weighted_mean
from gpu_align._merge._regression import Normal, ridge_fit
from gpu_align._network import Step, Walk
from gpu_align._symmetry import Op, TracedModel

_ENTRIES = 2**22
"""Most entries of the inputs of a layer that are laid out at once."""

_ROWS = 2**15
"""Most places that a layer is fitted on; neighbours in a map say nearly the same."""

_ROWS_PER_INPUT = 64
"""No more of them for each input of the layer: more than so many to a weight say little."""

_FEW_INPUTS = 256
"""A layer of fewer inputs is fitted on as many places as one of these: they cost little."""


@dataclass(frozen=True)
class Part:
    """The batches of a walk.

    Attributes:
        fit: numbers of those that weights are fitted on.
        held: of those on which the strength of a ridge is chosen.
    """

    fit: Sequence[int]
    held: Sequence[int]

    @property
    def all(self) -> list[int]:
        """Those that statistics are measured on."""
        return sorted({*self.fit, *self.held})


@dataclass(frozen=True)
class Candidate:
    """A merged network among the states of a walk.

    Attributes:
        state: its number.
        parents: numbers of the states that it is made of, in one order of units.
        weights: of the parents, summing to 1.
        method: what is done to its layers.
    """

    state: int
    parents: Sequence[int]
    weights: Sequence[float]
    method: "Method"

    def goal(self, step: Step, batch: int) -> Tensor:
        """Return the mean of what the parents have."""
        return weighted_mean([step.values[p][batch] for p in self.parents], self.weights)


class Method:
    """What is done to a layer of a merged network."""

    def fit(self, step: Step, layer: Layer, one: Candidate, part: Part) -> None:
        """Change the weights before the layer is run; the parents have been run already."""

    def mend(self, step: Step, layer: Layer, one: Candidate, part: Part) -> bool:
        """Change the weights after it was run; say whether they were changed."""
        return False


class Norms(Method):
    """Nothing but what `recalibrate` does to batch norms: their statistics are measured anew."""


@dataclass(frozen=True)
class Repair(Method):
    """Give every unit the mean and the deviation that its parents have on average.

    Source: Jordan et al., REPAIR (ICLR 2023), section 4; without the means, RESCALE.
    """

    means: bool = True

    def mend(self, step: Step, layer: Layer, one: Candidate, part: Part) -> bool:
        """See `Method.mend`."""
        if _goes_to_norm(step.node) or (isinstance(layer, Affine) and layer.norm != "batch_norm"):
            return False
        own_mean, own_deviation = _moments(step, layer, one.state, part)
        mean, deviation = torch.zeros_like(own_mean), torch.zeros_like(own_mean)
        for parent, weight in zip(one.parents, one.weights, strict=True):
            its_mean, its_deviation = _moments(step, layer, parent, part)
            mean += weight * its_mean
            deviation += weight * its_deviation
        known = own_deviation > 1e-6 * own_mean.abs()
        scale = torch.where(known, deviation / own_deviation, 1.0)
        shift = (mean if self.means else own_mean) - own_mean * scale
        layer.scale_outputs(scale, shift)
        return True


def _moments(step: Step, layer: Layer, state: int, part: Part) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each output of a layer, float64 [blocks, n] each."""
    rows = (layer.outputs(step.values[state][batch]) for batch in part.all)
    mean, variance, _ = _mean_and_variance(rows, 1)
    return mean, variance.sqrt()


def _mean_and_variance(
    parts: Iterable[Tensor], axes: int | tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    """Return the mean and the variance over some axes, float64, and the number of samples.

    Args:
        parts: samples, cut along the axes.
        axes: over which they are taken.
    """
    total: tuple[Tensor, Tensor, int] | None = None
    for part in parts:
        mean = part.mean(axes, keepdim=True)
        variance = (part - mean).square_().mean(axes)  # var_mean takes several times as long
        count = part.numel() // mean.numel()
        own = mean.flatten().to(torch.float64).view_as(variance), variance.to(torch.float64), count
        total = own if total is None else _joined(total, own)
    assert total is not None
    return total


def _joined(
    a: tuple[Tensor, Tensor, int], b: tuple[Tensor, Tensor, int]
) -> tuple[Tensor, Tensor, int]:
    """Join means and variances of two lots of samples; see `Moments`."""
    count = a[2] + b[2]
    share = b[2] / count
    gap = b[0] - a[0]
    variance = (1 - share) * a[1] + share * b[1] + share * (1 - share) * gap.square()
    return a[0] + share * gap, variance, count


@dataclass(frozen=True)
class Refit(Method):
    """Fit every layer by least squares to what its parents give on average.

    A ridge pulls towards the averaged weights; its strength is chosen on held-back data, layer by
    layer.

    Attributes:
        through: the inputs are those of the merged network itself, whose earlier layers are fitted
            already, so that what these have lost is made good; else the mean of its parents'.

    Source: Nasery et al., PLeaS (2024), section 3.2, which is the latter.
    """

    through: bool = True

    def fit(self, step: Step, layer: Layer, one: Candidate, part: Part) -> None:
        """See `Method.fit`."""
        fit = self._sums(step, layer, one, part.fit)
        if _is_rounding(fit, one.goal(step, part.fit[0])):
            return
        found = ridge_fit(fit, self._sums(step, layer, one, part.held), bias=layer.bias is not None)
        shift = None
        if layer.bias is not None:
            shift = layer.bias.detach().reshape(found.shift.shape) + found.shift
        layer.write(layer.matrix() + found.weight, shift)

    def _sums(self, step: Step, layer: Layer, one: Candidate, batches: Sequence[int]) -> Normal:
        inputs = layer.matrix().shape[1]
        rows = min(_ROWS_PER_INPUT * max(inputs, _FEW_INPUTS), _ROWS)
        most = max(rows // len(batches), 1)
        return reduce(
            Normal.merged,
            (
                Normal.of(x, r)
                for batch in batches
                for x, r in self._rows(step, layer, one, batch, most)
            ),
        )

    def _rows(
        self, step: Step, layer: Layer, one: Candidate, batch: int, most: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and residuals of a layer, part by part, on at most `most` places."""
        goal = one.goal(step, batch)
        states = [one.state] if self.through else one.parents
        weights = [1.0] if self.through else one.weights
        calls = [step.arguments(state, batch) for state in states]
        for some in _slices(layer, calls[0], goal, most):
            x = layer.mean_inputs(
                [{**call, layer.source: call[layer.source][some]} for call in calls], weights
            )
            yield x, layer.outputs(goal[some]) - layer.apply(x)


def _is_rounding(sums: Normal, goal: Tensor) -> bool:
    """Whether residuals are so small beside the goal that there is nothing to fit."""
    square = sums.rr.sum() / (sums.count * sums.r.numel())
    precision = min(torch.finfo(goal.dtype).eps, torch.finfo(torch.float32).eps)
    return bool(square <= (_ROUNDING * precision) ** 2 * goal.double().square().mean())


_ROUNDING = 64
"""Relative error of a layer in units of its dtype's precision; shorter types than float32 are no
reason to leave a layer as it is."""


def _slices(layer: Layer, call: Arguments, goal: Tensor, most: int) -> Iterator[slice]:
    """Cut a batch into parts of examples whose inputs are laid out at once."""
    if goal.ndim < 2 or not layer.is_batched(call):
        yield slice(None)
        return
    examples, rows = len(goal), layer.outputs(goal).shape[1]
    step = max(-(-rows // most), 1)
    width = layer.matrix().shape[0] * layer.matrix().shape[1]
    size = max(_ENTRIES * examples // max(rows * width, 1), 1) * step
    for start in range(0, examples, size):
        yield slice(start, start + size, step)


def recalibrate(
    walk: Walk,
    candidates: Sequence[Candidate],
    part: Part,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Set merged networks right in the states of a walk.

    Batch norms get the mean and the variance of what they are given, whatever the method.

    Args:
        walk: of the parents and of the merged networks, whose tensors are changed in place.
        candidates: the merged networks.
        part: which batches are fitted on.
        progress: called with the number of ops done, and of all.
    """
    users = _users(walk.models[0])
    known = {one.state: one for one in candidates}
    owners = {one.state: _owners(walk, one.state, users) for one in candidates}

    def prepare(step: Step, state: int) -> None:
        if state not in known:
            return
        if Op(step.node).name == "batch_norm":
            _measure(step, state, part)
        layer = _own_layer(step, state, owners[state])
        if layer is not None:
            known[state].method.fit(step, layer, known[state], part)

    with torch.no_grad():
        for step in walk.steps(prepare):
            for one in candidates:
                layer = _own_layer(step, one.state, owners[one.state])
                if layer is not None and one.method.mend(step, layer, one, part):
                    step.run_again(one.state)
            if progress is not None:
                progress(step.number + 1, len(walk))


def _own_layer(step: Step, state: int, owners: Mapping[int, set[fx.Node]]) -> Layer | None:
    """Return an op as a layer, if its weights are stored and no other op uses them."""
    layer = layer_of(Op(step.node).name, step.arguments(state, 0), step.node.meta.get("val"))
    return layer if layer is not None and _is_own(layer, step.node, owners) else None


def _measure(step: Step, state: int, part: Part) -> None:
    """Give a batch norm the mean and the variance of its inputs, if it keeps them."""
    calls = [step.arguments(state, batch) for batch in part.all]
    mean, variance = calls[0]["running_mean"], calls[0]["running_var"]
    if mean is None:
        return
    axes = tuple(axis for axis in range(calls[0]["input"].ndim) if axis != 1)
    found, spread, count = _mean_and_variance((call["input"] for call in calls), axes)
    mean.copy_(found)
    variance.copy_(spread * count / max(count - 1, 1))


def has_batch_norms(model: TracedModel) -> bool:
    """Whether a traced model has running statistics."""
    return any(
        Op(node).name == "batch_norm" and Op(node).arguments().get("running_mean") is not None
        for node in model.computed
    )


def _goes_to_norm(node: fx.Node) -> bool:
    """Whether nothing but batch norms reads a value."""
    return bool(node.users) and all(Op(user).name == "batch_norm" for user in node.users)


def _users(model: TracedModel) -> dict[str, set[fx.Node]]:
    """Return for each stored tensor the ops that use it, tied names as one."""
    computed = set(model.computed)
    users: dict[str, set[fx.Node]] = {}
    for place, name in model.stored.items():
        found = users.setdefault(model.spec.ties.get(name, name), set())
        pending = list(place.users)
        while pending:
            node = pending.pop()
            if node in computed:
                found.add(node)
            else:
                pending += node.users
    return users


def _owners(walk: Walk, state: int, users: Mapping[str, set[fx.Node]]) -> dict[int, set[fx.Node]]:
    """Return for each memory that a state's tensors lie in the ops that use it."""
    ties = walk.models[0].spec.ties
    owners: dict[int, set[fx.Node]] = {}
    for name, tensor in walk.states[state].items():
        place = tensor.untyped_storage().data_ptr()
        owners.setdefault(place, set()).update(users.get(ties.get(name, name), ()))
    return owners


def _is_own(layer: Layer, node: fx.Node, owners: Mapping[int, set[fx.Node]]) -> bool:
    """Whether the weights of a layer are stored, and no other op uses them."""
    used = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
    return all(owners.get(tensor.untyped_storage().data_ptr()) == {node} for tensor in used)
