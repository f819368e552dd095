"""Recalibration: what it makes of a network with itself, of scaled units, of batch norms."""

from functools import partial

import architectures as own
import hf_architectures as hf
import pytest
import sequence_architectures as sequence
import torch
from marks import slow
from networks import CNN, ResNet, mlp, randomised
from torch import Tensor, nn
from torch.func import functional_call

from gpu_align._merge._calibration import METHODS, Calibration
from gpu_align._network import Data, Examples, Traces

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes? .*_flat_weights.* assigned during export:UserWarning"
)


def draw(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def examples_for(inputs: object, count: int = 24) -> Examples:
    """Return examples of the shape of the inputs of a model: drawn numbers, repeated tokens."""
    assert isinstance(inputs, Tensor)
    if inputs.is_floating_point():
        return Examples.of(draw(5, count, *inputs.shape[1:]))
    generator = torch.Generator().manual_seed(5)
    return Examples.of(torch.randint(7, (count, *inputs.shape[1:]), generator=generator))


def outputs_of(model: nn.Module, state: dict[str, Tensor], x: object) -> Tensor:
    """Return the first output of a model under a state dict."""
    with torch.no_grad():
        made = functional_call(model.eval(), state, (x,), tie_weights=False)
    made = made if isinstance(made, Tensor | tuple) else made.to_tuple()
    return made if isinstance(made, Tensor) else made[0]


MODELS = {
    "mlp": lambda: (randomised(mlp([5, 8, 7, 3])), draw(1, 2, 5)),
    "cnn": lambda: (randomised(CNN(2, hidden=3, side=16)), draw(1, 2, 1, 16, 16)),
    "resnet": lambda: (randomised(ResNet(2)), draw(1, 2, 1, 8, 8)),
    "u_net": own.u_net,
    "dense_net": own.dense_net,
    "gpt2": partial(hf.gpt2, "sdpa"),
    "lstm": sequence.lstm,
}


@pytest.mark.parametrize("name", slow(MODELS, but=("mlp", "cnn", "lstm")))
def test_a_network_with_itself_stays(name: str) -> None:
    model, inputs = MODELS[name]()
    examples = examples_for(inputs)
    calibration = Calibration(Traces(model), examples)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    # Statistics that are measured on the data already, so that there is nothing to measure anew.
    [state] = calibration.merged([state], [1.0], [METHODS["norms"]])
    methods = ("repair", "rescale", "refit", "refit-parents")
    found = calibration.merged([state, state], [0.5, 0.5], [METHODS[m] for m in methods])
    x = examples.lots[0].inputs
    before = outputs_of(model, state, x)
    for method, again in zip(methods, found, strict=True):
        after = outputs_of(model, again, x)
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9, msg=method)


def test_norms_are_those_of_what_they_are_given() -> None:
    model = randomised(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    )
    x = draw(2, 700, 4)
    calibration = Calibration(Traces(model), Examples.of(x))
    [found] = calibration.merged([model.state_dict()], [1.0], [METHODS["norms"]])
    hidden = model[0](x).detach()
    torch.testing.assert_close(found["1.running_mean"], hidden.mean(0))
    torch.testing.assert_close(found["1.running_var"], hidden.var(0))
    assert torch.equal(model.state_dict()["1.running_mean"], model[1].running_mean)


@pytest.mark.parametrize("method", ["repair", "rescale"])
def test_repair_gives_units_the_moments_of_their_parents(method: str) -> None:
    model = randomised(mlp([5, 12, 3]))
    x = draw(3, 250, 5)
    a = {k: v.clone() for k, v in model.state_dict().items()}
    b = {k: v + 0.5 * draw(n, *v.shape) for n, (k, v) in enumerate(a.items())}
    [found] = Calibration(Traces(model), Examples.of(x)).merged(
        [a, b], [0.25, 0.75], [METHODS[method]]
    )

    def hidden(state: dict[str, Tensor]) -> Tensor:
        return x @ state["0.weight"].T + state["0.bias"]

    wanted = 0.25 * hidden(a).std(0, correction=0) + 0.75 * hidden(b).std(0, correction=0)
    torch.testing.assert_close(hidden(found).std(0, correction=0), wanted)
    if method == "repair":
        wanted = 0.25 * hidden(a).mean(0) + 0.75 * hidden(b).mean(0)
        torch.testing.assert_close(hidden(found).mean(0), wanted)


def test_a_refit_undoes_a_rotation_that_the_next_layer_can_undo() -> None:
    """Without an activation between them, layers can be fitted exactly to what parents give."""
    model = randomised(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    a = {k: v.clone() for k, v in model.state_dict().items()}
    turn = torch.linalg.qr(draw(4, 6, 6)).Q
    b = a | {
        "0.weight": turn @ a["0.weight"],
        "0.bias": turn @ a["0.bias"],
        "1.weight": a["1.weight"] @ turn.T,
    }
    x = draw(5, 1500, 4)
    calibration = Calibration(Traces(model), Examples.of(x))
    naive, [fitted] = (
        {k: (a[k] + b[k]) / 2 for k in a},
        calibration.merged([a, b], [0.5, 0.5], [METHODS["refit"]]),
    )
    wanted = outputs_of(model, a, x)
    lost, left = (
        (outputs_of(model, s, x) - wanted).norm() / wanted.norm() for s in (naive, fitted)
    )
    assert lost > 0.3
    assert left < 1e-3


@pytest.mark.parametrize("method", ["refit", "refit-parents"])
def test_a_refit_of_half_precision_comes_nearer_to_its_parents(method: str) -> None:
    model = randomised(mlp([8, 32, 32, 4])).bfloat16()
    a = {k: v.clone() for k, v in model.state_dict().items()}
    b = {k: v + 0.2 * draw(n, *v.shape).to(v) for n, (k, v) in enumerate(a.items())}
    x = draw(9, 1200, 8).bfloat16()
    [fitted] = Calibration(Traces(model), Examples.of(x)).merged(
        [a, b], [0.5, 0.5], [METHODS[method]]
    )
    goal = (outputs_of(model, a, x) + outputs_of(model, b, x)).double() / 2
    mean = {k: (a[k] + b[k]) / 2 for k in a}
    lost, left = ((outputs_of(model, s, x).double() - goal).norm() for s in (mean, fitted))
    assert left < 0.7 * lost


def test_weights_that_several_ops_use_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.layer(torch.relu(self.layer(x)))))

    model = randomised(Shared())
    a = {k: v.clone() for k, v in model.state_dict().items()}
    b = {k: v + draw(n, *v.shape) for n, (k, v) in enumerate(a.items())}
    calibration = Calibration(Traces(model), Examples.of(draw(6, 100, 4)))
    [found] = calibration.merged([a, b], [0.5, 0.5], [METHODS["refit"]])
    for name in ("layer.weight", "layer.bias"):
        torch.testing.assert_close(found[name], (a[name] + b[name]) / 2)
    assert not torch.equal(found["last.weight"], (a["last.weight"] + b["last.weight"]) / 2)


def test_what_is_given_is_not_changed_and_batches_say_the_same() -> None:
    model = randomised(CNN(2, hidden=3, side=16))
    a = {k: v.clone() for k, v in model.state_dict().items()}
    b = {
        k: v + 0.1 * draw(n, *v.shape) if v.is_floating_point() else v
        for n, (k, v) in enumerate(a.items())
    }
    b |= {k: v.abs() for k, v in b.items() if k.endswith("var")}
    kept = [{k: v.clone() for k, v in state.items()} for state in (a, b)]
    data = Data.of((draw(7, 40, 1, 16, 16), torch.zeros(40, dtype=torch.int64)))
    Calibration(Traces(model), data.fit).merged([a, b], [0.5, 0.5], list(METHODS.values()))
    for state, before in zip((a, b), kept, strict=True):
        assert all(torch.equal(state[k], before[k]) for k in before)


def test_no_more_examples_are_held_than_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(mlp([5, 100, 3]))
    calibration = Calibration(Traces(model), Examples.of(draw(8, 1000, 5)))
    way = [METHODS["refit"]]
    assert calibration.fitting(2, way) is calibration
    # Of an example at most 200 numbers of 8 bytes live at once, in each of 3 networks.
    monkeypatch.setenv("GPU_ALIGN_MEMORY", str(4 * 3 * 200 * 8 * 60))
    less = calibration.fitting(2, way)
    assert len(less.examples) == 60
    [found] = less.merged([model.state_dict()] * 2, [0.5, 0.5], way)
    torch.testing.assert_close(found["0.weight"], model.state_dict()["0.weight"])
