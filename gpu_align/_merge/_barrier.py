"""barrier: how much worse the networks between two trained ones are, before and after alignment."""

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.export import ExportedProgram

from gpu_align._align import AlignmentResult, Model, Network, Settings
from gpu_align._device import choose_engine, versions
from gpu_align._errors import InputError
from gpu_align._merge._barrier_result import BarrierResult
from gpu_align._merge._curve import LossCurve, segment_points
from gpu_align._merge._diagnosis import diagnose, facts_of
from gpu_align._merge._judge import STATISTICS, Judge
from gpu_align._merge._plane import Axes, LossPlane
from gpu_align._merge._segment import between, mixed
from gpu_align._merge._task import silent
from gpu_align._merge._trio import Trio, aligned, model_for
from gpu_align._network import Data, Loss, Score
from gpu_align._problem import Metric
from gpu_align._search import Budget, Search
from gpu_align._search import Progress as SearchProgress
from gpu_align._symmetry import Kept, Permutation, PermutationSpec

Told = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much, None if unknown."""


def barrier(
    a: Network,
    b: Network,
    data: object,
    *,
    loss: str | Loss = "auto",
    points: int = 25,
    align: AlignmentResult | Permutation | None = None,
    plane: int | None = None,
    model: nn.Module | ExportedProgram | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    spec: PermutationSpec | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    statistics: int = STATISTICS,
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    in_double: bool = False,
    progress: Told | None = None,
) -> BarrierResult:
    """Measure loss, accuracy and calibration on the segment between two networks.

    The barrier is the most by which the loss on `(1 - t) a + t b` exceeds the line between the
    losses of the ends (Frankle et al. 2020, section 2; Entezari et al. 2022, definition 2.1),
    before and after b is aligned to a. Where there are batch norms, both are measured with the
    interpolated statistics, and with statistics re-estimated at each point.

    Args:
        a: the network that stays: a module, a state dict, or the path of a checkpoint.
        b: the network that is aligned to it.
        data: see `Data.of`. Measured is on the test part, or on the held one where there is none;
            statistics are re-estimated on the part that is fitted on.
        loss: "cross_entropy", "mse", "auto" or a function of outputs and targets.
        points: on the segment, equally spaced, the ends included; the midpoint is always added.
        align: how b is aligned: what `align(b, a)` returned, or its permutation. Default: it is
            aligned here.
        plane: points a side of the plane through a, b and b aligned; None for no plane.
        model: the module or exported program that is run. Default: one of the networks, or the
            model that a `config.json` beside a checkpoint describes.
        example_inputs: as for `align`; by default the first examples of the data.
        outputs, spec, search, metric, device, budget: as for `align`.
        statistics: how many examples statistics are re-estimated on.
        seed: of the search, and of the part of the data that is held back.
        in_double: whether to run the networks in float64.
        progress: called as the work goes on.

    Raises:
        InputError: an argument cannot be used; its children say what is wrong.
        AssignmentError: the assignments could not be solved.
    """
    tell = progress or silent
    segment_points(points)
    found = Data.of(data, seed=seed)
    runs = model_for([a, b], model, example_inputs, outputs, found.fit)
    judge = Judge.of(runs, found, loss, device=device, statistics=statistics, in_double=in_double)
    settings = Settings.of(search, metric, device, seed, budget, _search_told(tell))
    trio = _trio(a, b, runs, align, settings, spec)
    return measure_barrier(trio, judge, points=points, plane=plane, seed=seed, progress=tell)


def loss_plane(
    a: Network,
    b: Network,
    data: object,
    *,
    grid: int = 15,
    loss: str | Loss = "auto",
    align: AlignmentResult | Permutation | None = None,
    model: nn.Module | ExportedProgram | None = None,
    example_inputs: object = None,
    outputs: Kept | None = None,
    spec: PermutationSpec | None = None,
    search: Search | str | None = None,
    metric: str | Metric = "l2",
    statistics: int = STATISTICS,
    device: str | torch.device = "auto",
    seed: int = 0,
    budget: Budget | None = None,
    progress: Told | None = None,
) -> LossPlane:
    """Measure the loss on the plane through a, b and b aligned to a.

    Batch norms have their statistics re-estimated at each point.

    Args:
        grid: points a side.
        a, b, data, loss, align, model, example_inputs, outputs, spec, search, metric, statistics,
            device, seed, budget, progress: as for `barrier`.

    Raises:
        InputError: an argument cannot be used, or the three networks lie on one line.
        AssignmentError: the assignments could not be solved.
    """
    tell = progress or silent
    found = Data.of(data, seed=seed)
    runs = model_for([a, b], model, example_inputs, outputs, found.fit)
    judge = Judge.of(runs, found, loss, device=device, statistics=statistics)
    settings = Settings.of(search, metric, device, seed, budget, _search_told(tell))
    trio = _trio(a, b, runs, align, settings, spec)
    axes = _axes(trio, judge)
    if axes is None:
        raise InputError(f"{_ON_A_LINE}; take other networks, or `barrier`")
    return _plane(trio, judge, axes, grid, tell)


_ON_A_LINE = (
    "A, B and B aligned lie on one line, so that there is no plane through them: alignment moves "
    "nothing, or makes B equal to A"
)


def measure_barrier(
    trio: Trio,
    judge: Judge,
    *,
    points: int = 25,
    plane: int | None = None,
    seed: int = 0,
    progress: Told | None = None,
) -> BarrierResult:
    """Measure a barrier; see `barrier`, which makes the arguments.

    Args:
        trio: the networks.
        judge: what scores them.
        points: on the segment.
        plane: points a side of the plane, or None.
        seed: what goes into the result.
        progress: called as the work goes on.
    """
    tell, begun = progress or silent, time.perf_counter()
    curves = _curves(trio, judge, segment_points(points), tell)
    naive, after = curves[-2:]
    plain = curves[1] if len(curves) > 2 else None
    axes = None if plane is None else _axes(trio, judge)
    drawn = None if axes is None or plane is None else _plane(trio, judge, axes, plane, tell)
    tell("diagnosing", 0, None)
    facts = facts_of(naive, after, plain, trio, judge)
    found = trio.found
    return BarrierResult(
        curves=tuple(curves),
        loss=judge.loss_name,
        part=judge.part,
        examples=len(judge.examples),
        statistics_examples=judge.statistics.examples if judge.statistics.are_needed else 0,
        findings=diagnose(facts),
        notes=(f"{_ON_A_LINE}.",) if plane is not None and axes is None else (),
        plane=drawn,
        metric="" if found is None else found.metric,
        distance_before=None if found is None else found.distance_before,
        distance=None if found is None else found.distance,
        search="" if found is None else found.search,
        seed=seed,
        device=str(choose_engine(judge.device)),
        seconds=time.perf_counter() - begun,
        versions=versions(),
    )


def _curves(trio: Trio, judge: Judge, points: list[float], tell: Told) -> list[LossCurve]:
    """Return the curves as given and aligned, first without statistics re-estimated."""
    kinds = (False, True) if judge.statistics.are_needed else (False,)
    total, done = 2 * len(kinds) * len(points), 0
    curves = []
    for reestimated in kinds:
        for is_aligned, end in ((False, trio.b), (True, trio.aligned)):
            scores = []
            for t in points:
                tell("measuring the segment", done, total)
                scores.append(judge.score(between(trio.a, end, t), reestimated=reestimated))
                done += 1
            curves.append(LossCurve.of(points, scores, aligned=is_aligned, reestimated=reestimated))
    return curves


def _axes(trio: Trio, judge: Judge) -> Axes | None:
    names = {name for name, _ in judge.model.module.named_parameters()} & trio.a.keys()
    return Axes.of((trio.a, trio.aligned, trio.b), names or trio.a.keys())


def _plane(trio: Trio, judge: Judge, axes: Axes, count: int, tell: Told) -> LossPlane:
    states, reestimated = (trio.a, trio.aligned, trio.b), judge.statistics.are_needed
    xs, ys = axes.grid(count)
    scores: list[list[Score]] = []
    for row, y in enumerate(ys):
        scores.append([])
        for column, x in enumerate(xs):
            tell("measuring the plane", row * count + column, count**2)
            state = mixed(states, axes.weights(x, y))
            scores[-1].append(judge.score(state, reestimated=reestimated))
    accuracies = tuple(tuple(s.accuracy for s in row if s.accuracy is not None) for row in scores)
    return LossPlane(
        x=tuple(xs),
        y=tuple(ys),
        losses=tuple(tuple(score.loss for score in row) for row in scores),
        accuracies=accuracies if accuracies[0] else (),
        places=axes.places,
        reestimated=reestimated,
    )


def _trio(
    a: Network,
    b: Network,
    model: Model,
    given: AlignmentResult | Permutation | None,
    settings: Settings,
    spec: PermutationSpec | None,
) -> Trio:
    if given is not None and not isinstance(given, AlignmentResult | Permutation):
        raise InputError(
            "expected what align(b, a) returns or a Permutation, got align="
            f"{type(given).__name__}; leave it out to align here, by search= if need be"
        )
    return Trio.of(a, b, model, given or aligned(a, b, model, settings, spec))


def _search_told(tell: Told) -> Callable[[SearchProgress], None]:
    return lambda step: tell(f"aligning: {step.stage}", step.step, step.steps)
