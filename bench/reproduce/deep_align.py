"""A learned aligner beside searches, on held-out pairs of perceptrons: barrier, AUC, time, sweeps.

    python -m bench.reproduce.deep_align --small [--record] [--zoo FOLDER]
    python -m bench.reproduce.deep_align --mnist FOLDER --device cuda [--record] [--zoo FOLDER]

The small setting trains 400 perceptrons 64-32-32-10 on scikit-learn's digits, the full one 3,000
perceptrons 784-128-128-128-10 on MNIST, as Deep-Align does. Of each zoo (kept in the folder, by
default zoo/deep_align_NAME) the last networks are test networks; an eighth of the others is held
back, and judges the epochs of the aligner's training. Pairs are a test network and the next one.
Test networks and test images are only reported on. Seconds are of the processor, on one thread;
on a GPU of the wall clock.

A barrier is how much the loss on test images exceeds the line between the ends at most, over 13
points; AUC is the mean of this excess, where it is above 0.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bench.record import record
from bench.reproduce.setting import parser, show, target
from gpu_align import (
    AlignmentProblem,
    CoordinateDescent,
    Learned,
    Permutation,
    PermutationSpec,
    Portfolio,
    Search,
    TaskLoss,
    activation_evidence,
    chain_spec,
    run_search,
)
from gpu_align._device import Engine, choose_engine
from gpu_align._network import Data
from gpu_align.learn import (
    Aligner,
    AlignerSettings,
    ClassifierRecipe,
    Elements,
    Epoch,
    TrainingFile,
    TrainingPlan,
    WeightSpace,
    Zoo,
    make_zoo,
    perceptron,
    train_aligner,
)

POINTS = 13
SWEEPS_SEEDS = 5
"""Orders of the groups over which the sweeps of a descent are averaged."""

PUBLISHED = {
    "naive": "2.007/.835",
    "weight matching": ".047/.011",
    "activation matching": ".024/.007",
    "learned": ".005/.000",
}
"""Barrier/AUC of MNIST MLPs 784-128-128-128-10: Navon et al. (ICML 2024), of their networks."""


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        recipe: of the networks.
        tested: test networks, so many of the last.
        settings: of the aligner.
        plan: of its training.
    """

    recipe: ClassifierRecipe
    tested: int
    settings: AlignerSettings
    plan: TrainingPlan


SMALL = Sizes(
    ClassifierRecipe(400),
    50,
    AlignerSettings(channels=64, features=128),
    TrainingPlan(60, batch=16, rate=5e-3, decay=0.1, clip=1.0),
)
FULL = Sizes(
    ClassifierRecipe(3000, (128, 128, 128), steps=2000, rate=1e-3, batch=128, shard=500),
    500,
    AlignerSettings(channels=128, features=256, fixed_rank=64),
    TrainingPlan(100, batch=16, rate=3e-3, decay=0.1, clip=1.0),
)


@dataclass(frozen=True)
class Pairs:
    """Test networks, each beside the next one.

    Attributes:
        model: how one is computed.
        spec: their symmetries.
        targets, sources: stacks of state dicts.
        images, labels: for testing.
        fit: training data, for what needs them.
        engine: what searches run on.
    """

    model: nn.Module
    spec: PermutationSpec
    targets: dict[str, Tensor]
    sources: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    fit: Data
    engine: Engine

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def state(self, states: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        return {name: tensor[number] for name, tensor in states.items()}

    def problem(self, number: int) -> AlignmentProblem:
        source, stays = (self.state(states, number) for states in (self.sources, self.targets))
        return AlignmentProblem(source, stays, self.spec, engine=self.engine)

    def losses(self, aligned: dict[str, Tensor]) -> Tensor:
        """Return the test losses on the segments to aligned sources, [pairs, POINTS]."""
        places = torch.linspace(0, 1, POINTS, device=self.images.device)
        return torch.stack([self._loss(aligned, float(share)) for share in places], 1)

    def _loss(self, aligned: dict[str, Tensor], share: float) -> Tensor:
        states = {n: torch.lerp(t, aligned[n], share) for n, t in self.targets.items()}

        def one(state: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(self.model, state, (self.images,)), self.labels)

        return vmap(one, chunk_size=64)(states)

    def accuracy(self) -> float:
        """Return the mean test accuracy of the targets."""

        def one(state: dict[str, Tensor]) -> Tensor:
            said = functional_call(self.model, state, (self.images,)).argmax(1)
            return (said == self.labels).float().mean()

        return float(vmap(one, chunk_size=64)(self.targets).mean())


def excess(losses: Tensor) -> Tensor:
    """Return how much losses [pairs, points] exceed the line between their ends, at least 0."""
    share = torch.linspace(0, 1, losses.shape[1]).to(losses)
    return (losses - torch.lerp(losses[:, :1], losses[:, -1:], share)).clamp_min(0)


def spread(values: Sequence[float] | Tensor) -> dict[str, float]:
    """Return the mean, its standard error and the deviation over pairs."""
    found = [float(value) for value in values]
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return {
        "mean": statistics.mean(found),
        "error": deviation / len(found) ** 0.5,
        "deviation": deviation,
    }


def seconds(device: torch.device) -> float:
    """Return a time: of the processor, on a GPU of the wall clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Way:
    """A way to align, tried on all pairs.

    Attributes:
        name: what it is called.
        permutations: of the sources, one for each pair.
        seconds: for each pair.
    """

    name: str
    permutations: list[Permutation]
    seconds: list[float]

    @classmethod
    def tried(cls, name: str, pairs: Pairs, find: Callable[[int], Permutation]) -> "Way":
        """Align each pair by its number."""
        found, times = [], []
        for number in range(len(pairs)):
            began = seconds(pairs.engine.device)
            found.append(find(number))
            times.append(seconds(pairs.engine.device) - began)
        return cls(name, found, times)

    def over(self, pairs: Pairs) -> Tensor:
        """Return how much the test losses on the segments exceed the line, [pairs, POINTS]."""
        elements, space = Elements.of(self.permutations), WeightSpace(pairs.spec)
        aligned = space.to_state_dicts(space.act(elements, space.from_stacks(pairs.sources)))
        return excess(pairs.losses(aligned))

    def row(self, pairs: Pairs, matched: Tensor) -> dict[str, object]:
        """Return what is to be said of it beside the barriers of weight matching, [pairs]."""
        over = self.over(pairs)
        distances = [pairs.problem(n).distance(p) for n, p in enumerate(self.permutations)]
        return {
            "way": self.name,
            **_figures("barrier", over.amax(1)),
            **_figures("beyond weight matching", over.amax(1) - matched),
            **_figures("AUC", over.mean(1)),
            **_figures("distance", distances),
            "ms/pair": 1000 * statistics.mean(self.seconds),
            "published": PUBLISHED.get(self.name, ""),
        }


def _figures(name: str, values: Sequence[float] | Tensor) -> dict[str, object]:
    found = spread(values)
    return {name: f"{found['mean']:.4f} +- {found['error']:.4f}", f"{name}, spread": found}


def trained(
    sizes: Sizes, zoo: Zoo, data: Data, model: nn.Module, folder: Path, device: torch.device
) -> tuple[Aligner, float]:
    """Return the aligner of the networks that are not for testing, and its CPU seconds."""
    states = {name: tensor[: -sizes.tested] for name, tensor in zoo.states.items()}

    def told(epoch: Epoch) -> None:
        print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, held {epoch.held:.4f}", flush=True)

    aligner, training = train_aligner(
        states,
        chain_spec({name: tensor[0] for name, tensor in states.items()}),
        task=TaskLoss(model, data, batch_size=64),
        plan=sizes.plan,
        settings=sizes.settings,
        held=1 / 8,
        device=device,
        file=TrainingFile(folder / "aligner.training", resume=True),
        progress=told,
    )
    aligner.save(folder / "aligner.safetensors")
    return aligner.to(device), training.seconds


def held_out(
    sizes: Sizes, zoo: Zoo, data: Data, model: nn.Module, spec: PermutationSpec, engine: Engine
) -> Pairs:
    """Return the test networks, each beside the next one."""
    assert data.test is not None
    last = {n: t[-sizes.tested :].to(engine.device) for n, t in zoo.states.items()}
    [tested] = data.test.lots
    assert isinstance(tested.targets, Tensor)
    return Pairs(
        model.to(engine.device),
        spec,
        last,
        {name: tensor.roll(-1, 0) for name, tensor in last.items()},
        tested.inputs.to(engine.device),
        tested.targets.to(engine.device),
        Data(data.fit, data.held),
        engine,
    )


def ways(pairs: Pairs, aligner: Aligner) -> list[Way]:
    """Return all ways, tried, weight matching first."""

    def by(search: Search | None) -> Callable[[int], Permutation]:
        def find(number: int) -> Permutation:
            problem = pairs.problem(number)
            chosen = Portfolio.for_problem(problem) if search is None else search
            return problem.permutation(run_search(chosen, problem).best)

        return find

    def activations(number: int) -> Permutation:
        a, b = (pairs.state(states, number) for states in (pairs.targets, pairs.sources))
        evidence = activation_evidence(a, b, pairs.spec, pairs.fit, model=pairs.model)
        best = {g: linear_sum_assignment(-each.cpu().numpy())[1] for g, each in evidence.items()}
        return Permutation(pairs.spec, {g: torch.from_numpy(perm) for g, perm in best.items()})

    started = Learned(aligner, then=CoordinateDescent())
    found = {
        "weight matching": by(CoordinateDescent()),
        "naive": lambda number: Permutation.identity(pairs.spec),
        "activation matching": activations,
        "default search": by(None),
        "learned, no look": by(Learned(aligner, looks=0)),
        "learned": by(Learned(aligner)),
        "learned + descent": by(started),
    }
    return [Way.tried(name, pairs, find) for name, find in found.items()]


def sweeps(pairs: Pairs, aligner: Aligner) -> dict[str, Tensor]:
    """Return sweeps of descent by where it starts, [pairs, seeds]; a look is not counted as one."""
    starts = {
        "weight matching": None,
        "the scores alone": Learned(aligner, then=CoordinateDescent(), looks=0),
        "the learned start": Learned(aligner, then=CoordinateDescent()),
    }
    found = {name: torch.empty(len(pairs), SWEEPS_SEEDS) for name in starts}
    for number in range(len(pairs)):
        problem = pairs.problem(number)
        for seed in range(SWEEPS_SEEDS):
            for name, search in starts.items():
                steps = run_search(search or CoordinateDescent(), problem, seed=seed).history
                # The first step of a learned start is no sweep.
                found[name][number, seed] = len(steps) - (search is not None)
    return found


def recovered(pairs: Pairs, aligner: Aligner) -> float:
    """Return the share of test networks that are found in themselves, reordered, to the unit."""
    exact = 0
    for number in range(len(pairs)):
        state = {name: tensor[number] for name, tensor in pairs.targets.items()}
        planted = Permutation.random(pairs.spec, seed=number)
        problem = AlignmentProblem(planted.apply(state), state, pairs.spec, engine=pairs.engine)
        found = problem.permutation(run_search(Learned(aligner), problem).best)
        exact += problem.distance(found) == 0.0  # in float64, from the weights themselves
    return exact / len(pairs)


def batch_seconds(pairs: Pairs, aligner: Aligner, repetitions: int = 5) -> float:
    """Return the seconds per pair of all pairs aligned in one batch, the least of a few."""
    features = [aligner.space.from_stacks(states) for states in (pairs.targets, pairs.sources)]
    times = []
    for _ in range(repetitions):
        began = seconds(pairs.engine.device)
        aligner.align(*features)
        times.append(seconds(pairs.engine.device) - began)
    return min(times) / len(pairs)


def targets(
    rows: list[dict], matched: float, steps: dict[str, Tensor], exact: float, batch: float
) -> list[dict]:
    """Return what was to be reached, and whether it was."""
    by_way = {row["way"]: row["barrier, spread"]["mean"] for row in rows}
    plain, started = (
        float(steps[name].mean()) for name in ("weight matching", "the learned start")
    )
    return [
        target("planted, share not recovered", 1 - exact, 0.0),
        target("sweeps, learned start / weight matching", started / plain, 0.6),
        target("batch of learned alignments, ms/pair", 1000 * batch, 6.0),
        target("barrier, learned", by_way["learned"], matched),
        target("barrier, learned + descent", by_way["learned + descent"], matched),
    ]


def run(sizes: Sizes, source: str, folder: Path, device: str) -> list[dict]:
    """Make the zoo, train the aligner, try all ways, and return the rows."""
    engine, data = choose_engine(device), Data.of(source)
    data = data.fitted((data.fit.lots[0].inputs[0].numel(),))
    [lot] = data.fit.lots
    kept, began = folder.exists(), seconds(engine.device)
    zoo = make_zoo(folder, sizes.recipe, lot.inputs, lot.targets, device=engine.device)
    made = seconds(engine.device) - began
    model = perceptron([lot.inputs.shape[1], *sizes.recipe.hidden, int(lot.targets.max()) + 1])
    aligner, spent = trained(sizes, zoo, data, model, folder, engine.device)
    pairs = held_out(sizes, zoo, data, model, aligner.spec, engine)
    tried = ways(pairs, aligner)
    matched = tried[0].over(pairs).amax(1)
    rows = [way.row(pairs, matched) for way in tried]
    steps = sweeps(pairs, aligner)
    exact, batch = recovered(pairs, aligner), batch_seconds(pairs, aligner)
    facts = {
        "networks": len(zoo),
        "pairs": len(pairs),
        "test accuracy": pairs.accuracy(),
        "zoo, seconds": "made before" if kept else made,
        "training, seconds": spent,
        "parameters of the aligner": sum(p.numel() for p in aligner.parameters()),
        **{k: v for n, s in steps.items() for k, v in _figures(f"sweeps, {n}", s.mean(1)).items()},
        "planted, recovered": exact,
        "batch, ms/pair": 1000 * batch,
    }
    reached = targets(rows, float(matched.mean()), steps, exact, batch)
    return [*rows, {"facts": facts}, *reached]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--zoo", help="folder of the networks; default zoo/deep_align_NAME")
    chosen = options.parse_args()
    if not (chosen.small or chosen.mnist):
        options.error("give --mnist FOLDER, or --small")
    torch.set_num_threads(1)
    name = "digits" if chosen.small else "mnist"
    folder = Path(chosen.zoo or f"zoo/deep_align_{name}")
    source = "digits" if chosen.small else f"mnist:{chosen.mnist}"
    rows = run(SMALL if chosen.small else FULL, source, folder, chosen.device)
    show("Aligned pairs of test networks", [row for row in rows if "way" in row])
    [facts] = (row["facts"] for row in rows if "facts" in row)
    show("Facts", [{"what": key, "is": str(value)} for key, value in facts.items()])
    show("Targets", [row for row in rows if "target" in row])
    if chosen.record:
        record(f"reproduce_deep_align_{name}", rows)


if __name__ == "__main__":
    main()
