"""Walk: a traced model run op by op, under several state dicts and on several batches at once.

All batches pass an op before any passes the next one. So what is measured at an op can change the
weights of that op, and of those after it, in one pass over the data.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from gpu_align._errors import InputError, ModelError
from gpu_align._network._image_layout import ImageLayout
from gpu_align._process import full_precision
from gpu_align._symmetry import Op, StateDict, TracedModel, as_arguments, extent


@dataclass(frozen=True)
class Step:
    """One op, run under every state dict and on every batch.

    Attributes:
        number: of the op among those that are computed.
        values: [state][batch], what it returned; they may be replaced, and later ops see that.
        walk: what it is a step of.
    """

    number: int
    values: list[list[Any]]
    walk: "Walk"

    @property
    def node(self) -> fx.Node:
        """The op in the graph of the first batch."""
        return self.node_of(0)

    def node_of(self, batch: int) -> fx.Node:
        """Return the op in the graph of a batch."""
        return self.walk.models[batch].computed[self.number]

    def arguments(self, state: int, batch: int) -> dict[str, Any]:
        """Return what the op was called with, by the names of its schema."""
        return Op(self.node_of(batch)).arguments(lambda n: self.walk.value(n, state, batch))

    def run_again(self, state: int) -> None:
        """Compute the values of one state anew, whose tensors have changed."""
        for batch in range(len(self.walk.models)):
            self.values[state][batch] = self.walk.call(self.node_of(batch), state, batch)


class Walk:
    """See above.

    Attributes:
        models: the traced model of each batch, all of the same ops.
        states: the tensors under which they are run; changing one in place changes what follows.
    """

    def __init__(
        self,
        models: Sequence[TracedModel],
        batches: Sequence[object],
        states: Sequence[StateDict],
    ) -> None:
        """Take what is to be run.

        Args:
            models: one for each batch, traced for its shape.
            batches: what the model is called with, see `as_arguments`.
            states: state dicts of the model; tensors that ops write into are copied.

        Raises:
            InputError: there are no batches.
            ModelError: batches of other shapes take other ways through the model.
        """
        if not batches:
            raise InputError("expected at least one batch of data, got none; pass more examples")
        self.models = models
        first = [node.target for node in models[0].computed]
        for model in models:
            if model is not models[0] and [node.target for node in model.computed] != first:
                raise ModelError(
                    "the model does other things to batches of other shapes, so that their values "
                    "cannot be put together; pass batches of one shape"
                )
        written = _written(models[0])
        self.states: list[dict[str, Tensor]] = [
            {name: tensor.clone() if name in written else tensor for name, tensor in state.items()}
            for state in states
        ]
        self._values: list[list[dict[fx.Node, Any]]] = [
            [_placed(model, batch) for model, batch in zip(models, batches, strict=True)]
            for _ in states
        ]
        apart = {id(model): model for model in models}
        self._last_uses = {key: _last_uses(model) for key, model in apart.items()}
        self._layouts = {key: ImageLayout(model) for key, model in apart.items()}

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.models[0].computed)

    def steps(self, before: Callable[[Step, int], None] | None = None) -> Iterator[Step]:
        """Run op after op; values that no later op needs are dropped.

        Args:
            before: called before an op is run under a state, with a step that has the values of
                the states before it, and the number of this one; it may change its tensors.
        """
        with full_precision():
            for number in range(len(self)):
                values: list[list[Any]] = []
                step = Step(number, values, self)
                for state in range(len(self.states)):
                    if before is not None:
                        before(step, state)
                    values.append(
                        [
                            self.call(model.computed[number], state, batch)
                            for batch, model in enumerate(self.models)
                        ]
                    )
                yield step
                self._keep(step)

    def outputs(self) -> list[list[dict[str, Any]]]:
        """Return the outputs by name, [state][batch], after the last step."""
        return [
            [
                {name: self.value(node, state, batch) for node, name in model.outputs}
                for batch, model in enumerate(self.models)
            ]
            for state in range(len(self.states))
        ]

    def value(self, node: fx.Node, state: int, batch: int) -> Any:
        """Return the value of a node; of one that does not depend on the inputs, computed now.

        What comes from a stored tensor by views alone shares its memory.
        """
        return self._value(node, state, batch, {})

    def call(self, node: fx.Node, state: int, batch: int) -> Any:
        """Run an op.

        Raises:
            ModelError: it fails.
        """
        return self._call(node, state, batch, {})

    def _value(self, node: fx.Node, state: int, batch: int, fresh: dict[fx.Node, Any]) -> Any:
        """See `value`; `fresh` has what was computed for the same op already."""
        known = self._values[state][batch]
        if node in known:
            return known[node]
        model = self.models[batch]
        if node in model.stored:
            return self.states[state][model.stored[node]]
        if node in model.constants:
            return model.constants[node]
        if node.op == "get_attr":
            return node.meta["val"]
        if node not in fresh:
            fresh[node] = self._call(node, state, batch, fresh)
        return fresh[node]

    def _call(self, node: fx.Node, state: int, batch: int, fresh: dict[fx.Node, Any]) -> Any:
        arguments = node.args, dict(node.kwargs)
        args, kwargs = fx.node.map_arg(arguments, lambda n: self._value(n, state, batch, fresh))
        args, kwargs = self._layouts[id(self.models[batch])].arguments(node, args, kwargs)
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        try:
            return function(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            raise ModelError(
                f"the traced model fails at its op {node.name}: {type(error).__name__}: {error}; "
                "the data must have the shape and dtype that the model takes"
            ) from error

    def _keep(self, step: Step) -> None:
        for state, values in enumerate(step.values):
            for batch, value in enumerate(values):
                known, node = self._values[state][batch], step.node_of(batch)
                known[node] = value
                for done in self._last_uses[id(self.models[batch])].get(node, ()):
                    known.pop(done, None)


def _placed(model: TracedModel, batch: object) -> dict[fx.Node, Any]:
    """Return the values of the placeholders of a batch."""
    leaves = tree_leaves(as_arguments(batch))
    if len(leaves) != len(model.inputs):
        raise ModelError(
            f"the model was traced with {len(model.inputs)} inputs, the batch has {len(leaves)}; "
            "pass batches of the form of the example inputs"
        )
    return dict(zip(model.inputs, leaves, strict=True))


def _written(model: TracedModel) -> set[str]:
    """Return the names of stored tensors that ops may write into."""
    writers = (node for node in model.computed if Op(node).writes)
    return {
        model.stored[source]
        for node in writers
        for source in _ancestors(node)
        if source in model.stored
    }


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        fresh = [source for source in pending.pop().all_input_nodes if source not in found]
        found.update(fresh)
        pending += fresh
    return found


def _last_uses(model: TracedModel) -> Mapping[fx.Node, list[fx.Node]]:
    """Return for each op the values that nothing after it needs, its own among them."""
    kept = {node for node, _ in model.outputs}
    values = [*model.inputs, *model.computed]
    order = {node: number for number, node in enumerate(model.graph.nodes)}
    computed = {node: number for number, node in enumerate(model.computed)}
    done: dict[fx.Node, list[fx.Node]] = {}
    for value in values:
        if value in kept or value.op == "placeholder":
            continue
        users = [user for user in value.users if user in computed]
        last = max([value, *users], key=order.__getitem__)
        done.setdefault(last, []).append(value)
    return done


def live_bytes(model: TracedModel) -> int:
    """Return the most bytes that the values of a walk take at once, for one state and batch."""
    last = _last_uses(model)
    sizes = {node: _bytes(node.meta.get("val")) for node in model.computed}
    live = most = 0
    for node in model.computed:
        live += sizes[node]
        most = max(most, live)
        live -= sum(sizes[done] for done in last.get(node, ()))
    return most


def _bytes(value: Any) -> int:
    """Return the size of a traced value; what others share is counted twice."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(t.element_size() * math.prod(extent(n) or 0 for n in t.shape) for t in tensors)
