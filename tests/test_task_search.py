"""Searches by a task loss: what they answer loses least, is a symmetry, and is reproducible."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from marks import each_once
from networks import CNN, mlp
from test_resume import assert_same, interrupt
from torch import Tensor, nn

from gpu_align import (
    AlignmentProblem,
    Budget,
    CoordinateDescent,
    InputError,
    Permutation,
    PermutationSpec,
    Progress,
    Search,
    Sinkhorn,
    Status,
    StraightThrough,
    TaskLoss,
    align,
    discover,
    run_search,
)
from gpu_align._cli._searches import make_search
from gpu_align._device._random import RandomStream
from gpu_align._network import load_digits
from gpu_align._search import Run, SearchStore
from gpu_align._search._adam import Adam

State = dict[str, Tensor]


class Heads(nn.Module):
    """Attention of two heads over the rows of the digits, then a tanh layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.hidden, self.out = nn.Linear(8, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x[:, 0]).unflatten(2, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(torch.tanh(self.hidden(mixed)).mean(1))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Flatten(), mlp([64, 16, 16, 10])),
    "cnn": lambda: CNN(3, hidden=8, side=8),
    "tanh": lambda: nn.Sequential(nn.Flatten(), mlp([64, 12, 12, 10], nn.Tanh)),
    "heads": Heads,
}


@cache
def module_of(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODULES[name]()


@cache
def trained(name: str, seed: int, steps: int = 150) -> State:
    """Return the state dict of a module that has learned the digits."""
    digits = load_digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MODULES[name]()
        adam = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(steps):
            chosen = torch.randint(len(digits.train_labels), (128,))
            logits = module(digits.train_images[chosen])
            adam.zero_grad()
            F.cross_entropy(logits, digits.train_labels[chosen]).backward()
            adam.step()
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}


@cache
def spec_of(name: str) -> PermutationSpec:
    return discover(module_of(name), load_digits().train_images[:2])


def problem_of(name: str, *seeds: int) -> AlignmentProblem:
    sources = [trained(name, seed) for seed in seeds or (1,)]
    return AlignmentProblem(sources, trained(name, 0), spec_of(name))


def loss_of(name: str) -> TaskLoss:
    digits = load_digits()
    data = digits.train_images, digits.train_labels
    return TaskLoss(module_of(name), data, batch_size=100, judged=200)


def searches(name: str, steps: int = 12) -> dict[str, Search]:
    loss = loss_of(name)
    return {
        "ste": StraightThrough(loss, steps, rate=1e-2, patience=steps),
        "sinkhorn": Sinkhorn(loss, steps, rate=0.3, patience=steps),
    }


SEARCHES = searches("relu")


def midpoint_loss(name: str, permutation: Permutation, source: State) -> float:
    """Return what the search is to make small, by plain torch."""
    held = loss_of(name).held.lots[0]
    a, b = trained(name, 0), permutation.apply(source)
    module = MODULES[name]()
    module.load_state_dict(
        {n: a[n].lerp(b[n], 0.5) if a[n].is_floating_point() else a[n] for n in a}
    )
    for part in module.modules():
        part.train(isinstance(part, nn.BatchNorm2d))
    parts = zip(held.inputs.split(100), held.targets.split(100), strict=True)
    with torch.no_grad():
        return sum(float(F.cross_entropy(module(x), y)) * len(x) for x, y in parts) / len(held)


@pytest.mark.parametrize(("search", "name"), each_once(SEARCHES, MODULES, but=("relu", "tanh")))
def test_the_answer_loses_less_than_weight_matching_and_as_it_says(search: str, name: str) -> None:
    problem, source = problem_of(name), trained(name, 1)
    matching = run_search(CoordinateDescent(), problem, seed=1)
    before = midpoint_loss(name, problem.permutation(matching.best), source)
    outcome = run_search(searches(name, 30)[search], problem, seed=1, start=matching.best)
    answer = problem.permutation(outcome.best)
    losses = [entry.loss for entry in outcome.history if entry.loss is not None]
    assert losses[-1] == pytest.approx(midpoint_loss(name, answer, source), rel=1e-4)
    assert losses[-1] < before - 1e-3
    assert losses == sorted(losses, reverse=True)
    assert outcome.history[-1].best_distance == pytest.approx(problem.distance(answer), rel=1e-4)
    assert outcome.status is Status.COMPLETED


@pytest.mark.parametrize(("kind", "name"), each_once([StraightThrough, Sinkhorn], MODULES))
def test_a_planted_permutation_is_found_and_its_barrier_is_none(
    kind: type[StraightThrough | Sinkhorn], name: str
) -> None:
    target, spec = trained(name, 0), spec_of(name)
    planted = Permutation.random(spec, seed=4)
    result = align(
        planted.apply(target),
        target,
        spec=spec,
        search=kind(loss_of(name), steps=2),
        device="cpu",
    )
    assert result.distance == 0
    assert result.history[-1].loss == float(loss_of(name).held_loss(target))


@pytest.mark.parametrize(("search", "name"), each_once(SEARCHES, MODULES))
def test_the_function_is_preserved(search: str, name: str) -> None:
    module = module_of(name)
    module.load_state_dict(trained(name, 0))
    found = align(
        trained(name, 1),
        module,
        example_inputs=load_digits().train_images[:8],
        search=searches(name, 4)[search],
        device="cpu",
    )
    assert found.function_difference is not None
    assert found.function_difference <= found.function_limit
    assert any(found.permutation.moved().values())


@pytest.mark.parametrize("search", SEARCHES)
def test_same_seed_gives_the_same_result(search: str) -> None:
    state = torch.get_rng_state()
    first, same, other = (
        run_search(SEARCHES[search], problem_of("relu"), seed=seed) for seed in (7, 7, 8)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first, same)
    assert [e.loss for e in first.history] == [e.loss for e in same.history]
    assert [e.loss for e in first.history] != [e.loss for e in other.history]


@pytest.mark.parametrize("search", SEARCHES)
def test_no_model_depends_on_the_others(search: str) -> None:
    together = run_search(SEARCHES[search], problem_of("relu", 1, 2), seed=2)
    for model in range(2):
        alone = run_search(SEARCHES[search], problem_of("relu", model + 1), seed=2)
        assert all(
            torch.equal(perm[model], alone.best.perms[name][0])
            for name, perm in together.best.perms.items()
        )


@pytest.mark.parametrize("search", SEARCHES)
def test_resumed_after_any_step_it_ends_as_if_never_interrupted(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, chosen = problem_of("relu"), SEARCHES[search]
    expected = run_search(chosen, problem, seed=3)
    for step in (1, 7, 12):
        store = SearchStore(tmp_path / "kept.search")
        interrupt(chosen, problem, step, store, monkeypatch)
        again = SearchStore(tmp_path / "kept.search", resume=True)
        resumed = run_search(chosen, problem, seed=3, store=again)
        assert_same(resumed, expected)
        assert [e.loss for e in resumed.history] == [e.loss for e in expected.history]


def test_a_search_by_another_loss_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of("relu")
    interrupt(SEARCHES["ste"], problem, 2, SearchStore(tmp_path / "kept.search"), monkeypatch)
    digits = load_digits()
    other = TaskLoss(module_of("relu"), (digits.test_images, digits.test_labels), judged=200)
    again = SearchStore(tmp_path / "kept.search", resume=True)
    with pytest.raises(InputError, match="it is another one"):
        run_search(StraightThrough(other, 12, patience=12), problem, seed=3, store=again)


@pytest.mark.parametrize("search", SEARCHES)
def test_it_rests_when_nothing_better_comes(search: str) -> None:
    patient = replace(SEARCHES[search], rate=1e-12, patience=3)  # type: ignore[type-var]
    outcome = run_search(patient, problem_of("relu"), seed=0)
    assert outcome.status is Status.CONVERGED
    assert len(outcome.history) == 3


def first_step(search: Search) -> State:
    """Return what is learned after one step."""
    run = Run(problem_of("relu"), RandomStream(5))
    learned: State = search.step(run, search.init(run, None)).memory[0].adam.parameters
    return learned


@pytest.mark.parametrize("segment", ["midpoint", "random"])
@pytest.mark.parametrize("initial", ["matching", "identity"])
@pytest.mark.parametrize("search", SEARCHES)
def test_settings_change_the_way(search: str, initial: str, segment: str) -> None:
    chosen = replace(SEARCHES[search], initial=initial, segment=segment)  # type: ignore[type-var]
    usual, other = (first_step(each) for each in (SEARCHES[search], chosen))
    changed = any(not torch.equal(usual[name], tensor) for name, tensor in other.items())
    assert changed == ((initial, segment) != ("matching", "midpoint"))


def test_the_loss_may_be_any_function() -> None:
    digits = load_digits()

    def margin(logits: Tensor, targets: Tensor) -> Tensor:
        right = logits.gather(1, targets[:, None])
        return (logits - right).clamp_min(-1).mean()

    data = digits.train_images, digits.train_labels
    loss = TaskLoss(module_of("relu"), data, margin, batch_size=100, judged=200)
    outcome = run_search(StraightThrough(loss, 8, rate=1e-2), problem_of("relu"))
    first, last = outcome.history[0].loss, outcome.history[-1].loss
    assert first is not None
    assert last is not None
    assert last <= first


def test_files_say_the_loss_only_where_there_is_one() -> None:
    plain = run_search(CoordinateDescent(), problem_of("relu")).history[-1]
    judged = run_search(SEARCHES["ste"], problem_of("relu"), budget=Budget(steps=1)).history[-1]
    assert "loss" not in plain.to_json()
    assert json.loads(json.dumps(judged.to_json()))["loss"] == judged.loss
    for entry in (plain, judged):
        assert Progress.from_json(entry.to_json()) == entry


def test_adam_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, dtype=torch.float64, generator=generator)
    weight = start.clone().requires_grad_()
    theirs, ours = torch.optim.Adam([weight], lr=0.03), Adam.of({"w": start})
    for _ in range(20):
        gradient = torch.randn(5, dtype=torch.float64, generator=generator)
        weight.grad = gradient.clone()
        theirs.step()
        ours = ours.after({"w": gradient}, 0.03)
    torch.testing.assert_close(ours.parameters["w"], weight.detach(), rtol=1e-12, atol=1e-12)


def test_the_gradient_passes_straight_through() -> None:
    """The first step moves w against the gradient of the midpoint's loss at the permuted source."""
    problem, loss = problem_of("relu"), loss_of("relu")
    matching = run_search(CoordinateDescent(), problem, seed=1).best
    search = StraightThrough(loss, 1, rate=1e-2)
    run = Run(problem, RandomStream(5))
    state = search.step(run, search.init(run, matching))
    learned = state.memory[0].adam.parameters
    a = trained("relu", 0)
    b = problem.permutation(matching).apply(trained("relu", 1))
    given = {name: tensor.clone().requires_grad_() for name, tensor in b.items()}
    batch = loss.draw(RandomStream(5))
    module = module_of("relu")
    middle = {name: a[name].lerp(given[name], 0.5) for name in a}
    logits = torch.func.functional_call(module, middle, (batch.inputs,))
    assert batch.targets is not None
    F.cross_entropy(logits, batch.targets).backward()
    for name, moved in learned.items():
        gradient = given[name].grad
        assert gradient is not None
        # Adam's first step has the length of the rate, whatever the gradient's.
        clear = gradient.abs() > 1e-5
        expected = a[name] - 1e-2 * gradient.sign()
        torch.testing.assert_close(moved[clear], expected[clear], rtol=0, atol=2e-5)
        assert clear.any()


# Errors


def test_a_loss_that_is_no_number_is_refused() -> None:
    digits = load_digits()
    data = digits.train_images, digits.train_labels

    def root(logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.mean() * 0 - 1).sqrt()

    with pytest.raises(InputError, match="halfway between the networks is nan"):
        run_search(StraightThrough(TaskLoss(module_of("relu"), data, root)), problem_of("relu"))


BAD: dict[str, tuple[Callable[[], Search], str]] = {
    "no_loss": (lambda: StraightThrough("cross_entropy"), "TaskLoss"),  # type: ignore[arg-type]
    "steps": (lambda: StraightThrough(loss_of("relu"), steps=0), "at least 1 step"),
    "rate": (lambda: Sinkhorn(loss_of("relu"), rate=math.nan), "rate above 0"),
    "initial": (lambda: Sinkhorn(loss_of("relu"), initial="best"), "initial among"),  # type: ignore[arg-type]
    "segment": (lambda: Sinkhorn(loss_of("relu"), segment="end"), "segment among"),  # type: ignore[arg-type]
    "iterations": (lambda: Sinkhorn(loss_of("relu"), iterations=0), "1 iteration"),
    "certainty": (lambda: Sinkhorn(loss_of("relu"), certainty=-1.0), "certainty"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_settings_are_refused(make: Callable[[], Search], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_the_model_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="has no tensor"):
        run_search(searches("cnn")["ste"], problem_of("relu"))


@pytest.mark.parametrize("name", ["ste", "sinkhorn"])
def test_without_data_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(InputError, match=r"TaskLoss\(module, data\)"):
        align(trained("relu", 1), trained("relu", 0), spec=spec_of("relu"), search=name)
    with pytest.raises(InputError, match=f"--search {name} follows the loss"):
        make_search(name, None, None)
    with pytest.raises(InputError, match="--width is not a setting"):
        make_search(name, 3, None, loss_of("relu"))
    found = make_search(name, None, None, loss_of("relu"))
    assert isinstance(found, StraightThrough | Sinkhorn)
