"""merge: one network out of several, in the way that is best on held-back data."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from gpu_align._align import Model, Network, Settings, checked_spec, model_beside, state_of
from gpu_align._merge._result import MergeResult
from gpu_align._merge._task import Task, silent
from gpu_align._network import Data, Loss
from gpu_align._problem import Metric
from gpu_align._search import Search
from gpu_align._symmetry import Kept, PermutationSpec


def merge(
    networks: Sequence[Network],
    data: object = None,
    *,
    method: str = "auto",
    weights: Sequence[float] | None = None,
    spec: PermutationSpec | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    loss: str | Loss = "auto",
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    device: str | torch.device = "auto",
    seed: int = 0,
    examples: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> MergeResult:
    """Merge networks of one architecture into one.

    The units are brought into the order of the first network, and the parameters averaged. What
    the mean has lost is set right on data: "norms" measures the statistics of batch norms anew,
    "repair" gives every unit the mean and deviation of its parents (REPAIR), "rescale" the
    deviation alone, "refit" fits every layer to the mean of what its parents give by least squares,
    on the inputs that the merged network has; "refit-parents" on those that the parents have
    (PLeaS). "distill" takes the mean of both fits and trains it for a short while to give the mean
    of its parents' logits or, where the loss is not of classes, of all their outputs (FedDF).
    "naive" averages without aligning, "average" and "slerp" align first.

    With data, "auto" tries the units as given, aligned by the weights, and by weights and
    activations, each with norms measured anew, or repaired where there are none; then repairs and
    fits the best of these, takes the mean of both fits, and distills networks that are small enough
    to be trained in seconds; and chooses by the loss on the part of the data that is held back. So
    it is no worse there than any of what it tried. Without data it is "average": then a lower
    distance need not be a lower loss. One way alone aligns by weights and activations where there
    are data. Three or more networks come into one order, so that cycles close; of these the best
    order without data is fitted, too.

    Args:
        networks: two or more modules, state dicts or paths of checkpoints.
        data: training data, see `Data.of`; test data in it are not looked at.
        method: "auto", or one of the above.
        weights: of the networks in the mean; default all alike.
        spec: the symmetries of all; default as for `align`.
        example_inputs, outputs: as for `align`; by default two examples of the data.
        loss: what is compared, see `loss_function`.
        search: for the permutations. Default: annealing, coordinate descent for wide networks.
        metric, device, seed: as for `align`.
        examples: how many examples are fitted on; they are held in memory with all values of
            one op. Default: 1500, up to 12000 for networks of few values, and three times as many
            where networks are distilled.
        progress: called with a few words before each part of the work.

    Returns:
        The merged network and what was tried; nothing of the networks is changed.

    Raises:
        InputError: the networks are not of one architecture, or an argument cannot be used.
        KeyboardInterrupt: Ctrl-C.

    Source: Ainsworth et al., Git Re-Basin (ICLR 2023); Jordan et al., REPAIR (ICLR 2023); Nasery
    et al., PLeaS (2024); Lin et al., Ensemble distillation (NeurIPS 2020).
    """
    settings = Settings.of(search, metric, device, seed, None, None)
    known = None if data is None else Data.of(data, seed=settings.seed)
    if example_inputs is None and known is not None:
        example_inputs = known.fit.lots[0][:2].inputs
    module = next((each for each in networks if isinstance(each, nn.Module)), None)
    model = None if module is None else Model(module, example_inputs, outputs)
    states = [state_of(network) for network in networks]
    if model is None and states:
        model = model_beside(networks, states[0], example_inputs, outputs)
    if model is not None and known is not None:
        known = model.fitted(known)
    task = Task(
        states,
        settings,
        model,
        checked_spec(spec),
        known,
        names=[f"network {number}" for number in range(len(states))],
        weights=weights,
        loss=loss,
        examples=examples,
        tell=progress or silent,
    )
    return task.run(method)
