"""Networks that draw random numbers in evaluation, and policies that build distributions."""

from collections.abc import Callable

import pytest
import torch
from networks import Graph, mlp
from torch import Tensor, distributions, nn
from torch.nn import functional as F

from gpu_align import ModelError, PermutationSpec, align, discover

INPUTS = torch.randn(2, 12)


def sizes(spec: PermutationSpec) -> list[int]:
    return [group.size for group in spec.groups.values()]


def variational(seed: int = 0) -> nn.Module:
    """Return a VAE with 16 units on either side and 3 latent ones that noise is added to."""
    torch.manual_seed(seed)

    def run(s: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        hidden = F.relu(s.a(x))
        mean, log_variance = s.mean(hidden), s.variance(hidden)
        latent = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        return (s.c(F.relu(s.b(latent))),)

    wide = {"a": (12, 16), "mean": (16, 3), "variance": (16, 3), "b": (3, 16), "c": (16, 12)}
    return Graph(run, **{name: nn.Linear(*shape) for name, shape in wide.items()})


def test_a_variational_autoencoder_keeps_its_latent_units() -> None:
    spec = discover(variational(), INPUTS)
    assert sizes(spec) == [16, 16]
    reasons = {pin.reason for pin in spec.pins if pin.tensor == "mean.weight"}
    assert reasons == {"noise of op randn_like"}
    result = align(variational(1), variational(2), example_inputs=INPUTS)
    assert result.function_difference < 1e-9


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "bernoulli": lambda x: x * torch.bernoulli(torch.sigmoid(x)),
    "normal": lambda x: torch.normal(x, 1.0),
    "rand": lambda x: x + torch.rand(x.shape),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "sample": lambda x: distributions.Normal(x, 1.0).rsample(),
    "attention": lambda x: F.scaled_dot_product_attention(
        *(x.reshape(-1, 4, 2, 1),) * 3, dropout_p=0.5
    ).flatten(1),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_units_that_noise_is_drawn_for_are_fixed(noise: Callable[[Tensor], Tensor]) -> None:
    model = Graph(
        lambda s, x: s.head(noise(s.b(F.relu(s.a(x))))),
        a=nn.Linear(12, 5),
        b=nn.Linear(5, 8),
        head=nn.Linear(8, 2),
    )
    assert sizes(discover(model, INPUTS)) == [5]


def test_dropout_that_evaluation_switches_off_fixes_nothing() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.AlphaDropout(), nn.Linear(8, 2))
    assert sizes(discover(model, INPUTS)) == [8]


def test_the_generator_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    discover(variational(0), INPUTS)
    torch.manual_seed(3)
    model = variational(3)
    torch.manual_seed(3)
    discover(model, INPUTS)
    assert torch.equal(torch.rand(4), expected)


class Policy(nn.Module):
    """What reinforcement learning calls a policy: its forward builds a distribution."""

    def __init__(self, answer: Callable[[distributions.Distribution], object]) -> None:
        super().__init__()
        self.net = mlp([12, 16, 2])
        self.log_std = nn.Parameter(torch.zeros(2))
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        normal = distributions.Normal(self.net(x), self.log_std.exp())
        return self.answer(distributions.Independent(normal, 1))


ANSWERS: dict[str, Callable[[distributions.Distribution], object]] = {
    "mean": lambda d: d.mean,
    "log_prob": lambda d: (d.mean, d.log_prob(torch.zeros(2))),
    "sample": lambda d: d.rsample(),
    "distribution": lambda d: d,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("validate", [True, False])
def test_distributions_in_forward_are_no_obstacle(answer: Callable, validate: bool) -> None:
    before = distributions.Distribution._validate_args
    distributions.Distribution.set_default_validate_args(validate)
    try:
        assert sizes(discover(Policy(answer), INPUTS)) == [16]
        assert distributions.Distribution._validate_args is validate
    finally:
        distributions.Distribution.set_default_validate_args(before)


def branching(x: Tensor) -> Tensor:
    return x if bool(x.sum() > 0) else -x


def test_a_trace_that_fails_names_the_line_and_prints_no_graph(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = Graph(lambda s, x: s.b(branching(s.a(x))), a=nn.Linear(12, 5), b=nn.Linear(5, 2))
    with pytest.raises(ModelError, match="cannot trace") as caught:
        discover(model, INPUTS)
    line = branching.__code__.co_firstlineno + 1
    assert f"test_noise.py, line {line})" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "def forward" not in "".join(capfd.readouterr())
