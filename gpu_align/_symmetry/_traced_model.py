"""TracedModel: a model as a graph of ops that can be run, with the units in every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from gpu_align._errors import ModelError
from gpu_align._process import MODULES
from gpu_align._symmetry._export import export
from gpu_align._symmetry._flat_graph import Program
from gpu_align._symmetry._gauge._find import Layouts
from gpu_align._symmetry._op import Op
from gpu_align._symmetry._outputs import Kept
from gpu_align._symmetry._spec import PermutationSpec, StateDict
from gpu_align._symmetry._tensor_spec import TensorSpec
from gpu_align._symmetry._trace import find_symmetries
from gpu_align._symmetry._wrappers import unwrapped


@dataclass(frozen=True)
class TracedModel:
    """The graph of a model for inputs of one shape, in evaluation mode.

    Attributes:
        graph: its ops.
        spec: its symmetries.
        stored: placeholder node -> the state-dict name of its tensor.
        constants: placeholder node -> its tensor, of what is stored in no state dict.
        inputs: the placeholder nodes of what the model is called with, flattened.
        outputs: the values that are kept, and their names.
        computed: nodes whose values depend on the inputs, in order.
    """

    graph: fx.Graph
    spec: PermutationSpec
    stored: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, object]
    inputs: Sequence[fx.Node]
    outputs: Sequence[tuple[fx.Node, str]]
    computed: Sequence[fx.Node]
    _layouts: Layouts

    def layout(self, node: fx.Node) -> TensorSpec | None:
        """Return where the units of groups are in a value; None if it is not one tensor.

        The shape may split or join axes of the value otherwise than the graph does.
        """
        axes = self._layouts(node)
        return None if axes is None else TensorSpec(axes, counted=False)


def trace_model(
    model: nn.Module | ExportedProgram, inputs: object, outputs: Kept | None = None
) -> TracedModel:
    """Trace a model, which is left as it was.

    Args:
        model: see `discover`.
        inputs: of the shape that it will be run on; see `discover`.
        outputs: those that are looked at, default all.

    Raises:
        InputError: there is no such output; ModelError: it cannot be traced.
    """
    module: nn.Module
    with MODULES:
        if isinstance(model, ExportedProgram):
            program, module = Program.of(model), model.module()
        else:
            module = unwrapped(model)
            program, _ = export(module, inputs)
        held = dict(module.state_dict())
        state = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
        found = find_symmetries(program, state, f"traced from {type(module).__name__}", outputs)
    places = [node for node in found.graph.nodes if node.op == "placeholder"]
    stored, constants, given = _sorted(program, module, places, state)
    computed = _computed(found.graph, given)
    kept = [(node, name) for node, name in found.outputs if name]
    return TracedModel(
        found.graph, found.spec, stored, constants, given, kept, computed, found.layouts
    )


def _sorted(
    program: Program, module: nn.Module, places: Sequence[fx.Node], state: StateDict
) -> tuple[dict[fx.Node, str], dict[fx.Node, object], list[fx.Node]]:
    """Tell the placeholders apart: what is in the state dict, what is constant, what is given."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    stored: dict[fx.Node, str] = {}
    constants: dict[fx.Node, object] = {}
    given: list[fx.Node] = []
    for node, spec in zip(places, program.graph_signature.input_specs, strict=True):
        name = spec.target or ""
        if spec.kind is InputKind.USER_INPUT:
            given.append(node)
        elif name in state:
            stored[node] = name
        elif name in program.constants or name in buffers:
            constants[node] = program.constants.get(name, buffers.get(name))
        else:
            raise ModelError(
                f"the model uses {name or node.name!r}, which is neither a tensor of its state "
                "dict nor a constant; register it as a buffer"
            )
    return stored, constants, given


def _computed(graph: fx.Graph, given: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the ops on whose values the inputs or writes have an effect."""
    known = set(given)
    for node in graph.nodes:
        if node.op == "call_function" and Op(node).writes:
            pending = [node]
            while pending:
                known.add(pending[-1])
                pending += [n for n in pending.pop().all_input_nodes if n not in known]
    for node in graph.nodes:
        if node.op == "call_function" and not known.isdisjoint(node.all_input_nodes):
            known.add(node)
    return [node for node in graph.nodes if node in known and node.op == "call_function"]
