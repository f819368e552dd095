"""repair: a network whose units have lost their statistics, set right on data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gpu_align._align import Model, Network, model_beside, state_of
from gpu_align._checkpoint import rename
from gpu_align._device import choose_engine
from gpu_align._errors import InputError
from gpu_align._merge._average import check_alike, shares_of
from gpu_align._merge._calibration import METHODS, Calibration
from gpu_align._network import Data, Loss, Score, Traces, evaluate_many
from gpu_align._symmetry import Kept, StateDict

SCHEMA = "gpu-align/repair/1"


@dataclass(frozen=True)
class RepairResult:
    """A network that was set right.

    Attributes:
        state_dict: under the names and in the dtypes of what was given.
        method: what was done.
        before, after: scores on held-back data; None without targets.
    """

    state_dict: dict[str, Tensor]
    method: str
    before: Score | None
    after: Score | None

    def to_json(self) -> dict[str, Any]:
        """Return everything but tensors as plain JSON values."""
        scores = {"before": self.before, "after": self.after}
        plain = {name: score and _plain(score) for name, score in scores.items()}
        return {"schema": SCHEMA, "method": self.method, **plain}


def repair(
    network: Network,
    data: object,
    *,
    parents: Sequence[Network] = (),
    weights: Sequence[float] | None = None,
    method: str | None = None,
    model: nn.Module | ExportedProgram | Model | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    loss: str | Loss = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    examples: int | None = None,
) -> RepairResult:
    """Set a merged network right on data.

    Args:
        network: a module, a state dict or the path of a checkpoint.
        data: see `Data.of`.
        parents: the networks that it was merged from, their units in its order; all methods but
            "norms" need them.
        weights: of the parents; default all alike.
        method: "norms" measures the statistics of batch norms anew; "repair", "rescale", "refit"
            and "refit-parents" as for `merge`. Default: "repair" with parents, else "norms".
        model: what is run with the tensors, a module or an exported program; default the network
            if it is a module, or what a `config.json` beside it names.
        example_inputs, outputs, loss, device, seed, examples: as for `merge`.

    Raises:
        InputError: there is no model, a method without what it needs, or parents of another
            architecture; ModelError: the model fails on the data.
    """
    known = Data.of(data, seed=seed)
    state = state_of(network)
    if not isinstance(model, Model):
        model = _model(network if model is None else model, state, known, example_inputs, outputs)
    known = model.fitted(known)
    method = _checked(method or ("repair" if parents else "norms"), parents)
    others = [state_of(parent) for parent in parents]
    check_alike([state, *others])
    keys = model.module.state_dict().keys()
    inside = [rename(model.in_module(each), keys) for each in (state, *others)]
    shares = shares_of(weights, len(parents)) if parents else ()
    place = choose_engine(device).device
    way = [METHODS[method]]
    traces = Traces(model.network, model.outputs, place)
    whole = Calibration(traces, known.fit)
    count = whole.count if examples is None else examples
    calibration = Calibration(traces, traces.enough(known.fit, count)).fitting(len(parents), way)
    [made] = calibration.mended([inside[0].state], [each.state for each in inside[1:]], shares, way)
    back = {own: name for own, name in model.names.items()}
    after = {back.get(n, n): t for n, t in inside[0].restore(made).items()}
    scores: Sequence[Score | None] = (None, None)
    if known.held.have_targets:
        pair = [inside[0].state, made]
        held = known.held.take(whole.judged)
        scores = evaluate_many(model.module, pair, held, loss, device=place)
    return RepairResult({**state, **after}, method, *scores)


def _checked(method: str, parents: Sequence[Network]) -> str:
    if method not in METHODS:
        raise InputError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
    if method != "norms" and not parents:
        raise InputError(
            f"method={method!r} takes its measure from the networks that were merged; pass them "
            "as parents, or method='norms'"
        )
    return method


def _model(
    network: Network | ExportedProgram,
    state: StateDict,
    data: Data,
    inputs: object,
    outputs: Kept | None,
) -> Model:
    if isinstance(network, nn.Module | ExportedProgram):
        return Model(network, data.fit.lots[0][:2].inputs if inputs is None else inputs, outputs)
    found = model_beside([network], state, inputs, outputs)
    if found is None:
        raise InputError("data are run in a model, and none was given; pass a module, or model=")
    return found


def _plain(score: Score) -> dict[str, Any]:
    values = asdict(score)
    return {name: values[name] for name in ("loss", "accuracy", "ece", "examples")}
