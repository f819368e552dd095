"""Activations: statistics of the units of two networks on the same data, in one pass."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._checkpoint import rename
from gpu_align._errors import InputError, ModelError
from gpu_align._network._evaluate import BATCH_SIZE
from gpu_align._network._examples import Batch, Examples
from gpu_align._network._limits import Limits
from gpu_align._network._moments import Moments
from gpu_align._network._sites import Site, find_sites, lineage
from gpu_align._network._walk import Walk
from gpu_align._process import MODULES
from gpu_align._symmetry import (
    Kept,
    StateDict,
    TracedModel,
    duplicate,
    same_noise,
    tied_names,
    trace_model,
    unwrapped,
)


class Traces:
    """A model that is traced anew for each shape that batches have.

    Batches of a size that a program does not take are left out.

    Attributes:
        limits: how many examples a batch may have.
        device: where it is run; a module is copied there unless it lies there. A program is run
            where it was exported.

    Args:
        network: a module, or a program.
        outputs: those that must stay as they are, default all; see `discover`.
        device: see the attribute.
    """

    def __init__(
        self,
        network: nn.Module | ExportedProgram,
        outputs: Kept | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        with MODULES:
            if isinstance(network, ExportedProgram):
                module: nn.Module = network.module()
            else:
                module = network = unwrapped(network)
                if device is not None and _device_of(module) != torch.device(device):
                    module = network = duplicate(network).to(device)
            self.limits = Limits.of(module)
            if not self.limits.are_fixed:
                network = module  # a program for several sizes is traced for each, as a module is
            self._own = {k: t for k, t in module.state_dict().items() if isinstance(t, Tensor)}
            self._ties = tied_names(module)
        self._network, self._outputs = network, outputs
        self._known: dict[object, tuple[TracedModel, list[Site]]] = {}
        self.device = _device_of(module)

    def enough(self, examples: Examples, count: int) -> Examples:
        """Return the first examples: so many, or those of a batch if this has more."""
        return examples.take(max(count, self.limits.least))

    def of(self, batch: Batch) -> tuple[TracedModel, list[Site]]:
        """Return the model as it is traced for a batch, and its sites.

        Raises:
            ModelError: it cannot be traced.
        """
        form = (len(batch), Batch(batch.inputs).form)
        if form not in self._known:
            model = trace_model(self._network, batch.inputs, self._outputs)
            self._known[form] = model, find_sites(model)
        return self._known[form]

    def batches(
        self, examples: Examples, size: int = BATCH_SIZE, *, equal: bool = False
    ) -> Iterator[Batch]:
        """Go through examples on the device.

        Args:
            examples: what is run.
            size: most examples of a batch.
            equal: make batches of one size of each lot, and leave out what is over.

        Raises:
            InputError: a program takes larger batches than there are.
        """
        equal = equal and not self.limits.are_fixed
        parts = examples.equal_batches if equal else examples.batches
        found = False
        for batch in parts(self.limits.nearest(size)):
            if self.limits.allow(len(batch)):
                found = True
                yield batch.to(self.device)
        if not found:
            raise InputError(
                f"the program takes {self.limits}, and fewer of the {len(examples)} that it is to "
                "be measured on are of one shape; give more data, or export it with a smaller or a "
                "dynamic batch (dynamic_shapes)"
            )

    def placed(self, state: StateDict) -> dict[str, Tensor]:
        """Return all tensors of the model from a state dict, in the model's dtypes.

        Those that it does not have are the model's own.

        Raises:
            ModelError: a tensor has another shape.
        """
        given = dict(state if state.keys() <= self._own.keys() else rename(state, self._own).state)
        for names in self._ties:
            shared = next((given[name] for name in names if name in given), None)
            given |= {name: shared for name in names if shared is not None and name not in given}
        for name, own in self._own.items():
            if name in given and given[name].shape != own.shape:
                raise ModelError(
                    f"{name!r} has the shape {list(given[name].shape)}, in the model "
                    f"{list(own.shape)}; give the model of these weights"
                )
        return {name: given.get(name, own).detach().to(own) for name, own in self._own.items()}


def unit_statistics(
    traces: Traces,
    examples: Examples,
    a: StateDict,
    b: StateDict,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Site, Moments]:
    """Return the moments of the units of two networks wherever they can be compared.

    Both are run on the same batches, one after another, so that memory does not grow with the
    examples. A sample is one place (pixel, token) of one example.

    Args:
        traces: the model of both.
        examples: what they are run on; targets are not looked at.
        a, b: state dicts of the model.
        batch_size: how many examples are run at once; moments differ by rounding only.
        progress: called with the number of examples that are done, and of all.

    Returns:
        Site, as in the first batch -> moments on the device, with one row for each unit; units of
        a group inside another one are numbered (unit of the parent, unit inside it).

    Raises:
        ModelError: the model cannot be traced or run, or other shapes take other ways through it.
    """
    states = [traces.placed(a), traces.placed(b)]
    first: list[Site] | None = None
    known: list[tuple[str, bool, int]] = []
    sums: list[Moments] = []
    done = 0
    for batch in traces.batches(examples, batch_size):
        model, sites = traces.of(batch)
        kinds = [(site.group, site.signed, model.spec.units(site.group)) for site in sites]
        moments = _of_batch(model, sites, batch, states)
        if first is None:
            first, known, sums = sites, kinds, moments
        elif kinds == known:
            sums = [x.merged(y) for x, y in zip(sums, moments, strict=True)]
        else:
            raise ModelError(
                "batches of other shapes take other ways through the model, so that their "
                "statistics cannot be put together; give examples of one shape"
            )
        done += len(batch)
        if progress is not None:
            progress(done, len(examples))
    return dict(zip(first or [], sums, strict=True))


def _of_batch(
    model: TracedModel, sites: list[Site], batch: Batch, states: list[dict[str, Tensor]]
) -> list[Moments]:
    """Return the moments at each site on one batch."""
    at: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        at.setdefault(site.step, []).append(number)
    found: dict[int, Moments] = {}
    walk = Walk([model], [batch.inputs], states)
    with torch.no_grad(), same_noise({tensor.device for tensor in states[0].values()}):
        for step in walk.steps():
            for number in at.get(step.number, ()):
                groups = lineage(model.spec, sites[number].group)
                a, b = (sites[number].units(values[0], groups) for values in step.values)
                found[number] = Moments.of(a, b)
    return [found[number] for number in range(len(sites))]


def _device_of(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
