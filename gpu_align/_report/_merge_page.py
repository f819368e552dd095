"""The page of a merge: headline, losses of what was tried, and how well the groups match."""

import math
from collections.abc import Iterator

import matplotlib.style

from gpu_align._merge import MergeResult, Trial
from gpu_align._report._figures import STYLE
from gpu_align._report._format import aligned, number, percent, plural
from gpu_align._report._merge_figures import losses
from gpu_align._report._pictures import Picture, svg
from gpu_align._report._tables import Table
from gpu_align._report._template import template


def render_merge(result: MergeResult, title: str) -> str:
    """Return the HTML page of a merge; equal results give equal text."""
    with matplotlib.style.context(["default", STYLE]):
        pictures = list(merge_pictures(result))
    return template("merge.html.j2").render(
        title=title,
        headline=_headline(result),
        sentences=[*_measured(result.chosen), *result.notes],
        pictures=pictures,
        tables=merge_tables(result),
        settings=_settings(result),
    )


def merge_pictures(result: MergeResult) -> Iterator[Picture]:
    """Yield the figure of the losses; none without losses."""
    known = [trial for trial in result.trials if trial.loss is not None and _is_drawn(trial.loss)]
    if not known:
        return
    yield Picture(
        title="Losses of what was tried",
        source=svg(losses(known, result.chosen)),
        alt=f"Loss of each way of merging on held-back data; {words(result.chosen)} has "
        f"{number(result.chosen.loss, 4)}",
        caption="Loss on held-back data, on a logarithmic scale: the networks, and each way of "
        "merging them. The chosen one is dark.",
    )


def merge_tables(result: MergeResult) -> list[Table]:
    """Return the tables of what was tried, and of the groups."""
    return [_trials(result), *_groups(result)]


def words(trial: Trial) -> str:
    """Return what a trial is called."""
    return f"{trial.order}: {trial.method}" if trial.is_merged else trial.order


def _is_drawn(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0


def _headline(result: MergeResult) -> dict[str, str]:
    chosen = result.chosen
    named = {
        "Chosen": words(chosen),
        "Loss": number(chosen.loss, 4),
        "Accuracy": percent(chosen.accuracy, 2),
        "Networks": str(len(result.weights)),
    }
    return {name: text for name, text in named.items() if text}


def _measured(chosen: Trial) -> Iterator[str]:
    if chosen.loss is not None:
        yield f"Measured on {plural(chosen.examples, 'held-back example')}, which it was chosen on."


def _trials(result: MergeResult) -> Table:
    trials = result.trials
    columns = {
        "order of units": [trial.order for trial in trials],
        "set right by": [trial.method or "not merged" for trial in trials],
        "loss": aligned([trial.loss for trial in trials]),
        "accuracy": [percent(trial.accuracy, 2) for trial in trials],
        "ECE": [number(trial.ece, 3) for trial in trials],
        "distance": aligned([trial.distance for trial in trials]),
    }
    known = {
        "loss": result.chosen.loss is not None,
        "accuracy": result.chosen.accuracy is not None,
        "ECE": result.chosen.ece is not None,
    }
    shown = {name: cells for name, cells in columns.items() if known.get(name, True)}
    return Table(
        title="What was tried",
        note="The chosen way is marked. Distance: of the networks to their mean, squared and "
        "weighted. ECE: expected calibration error.",
        columns=tuple(shown),
        rows=tuple(zip(*shown.values(), strict=True)),
        best=trials.index(result.chosen),
        words=(1,),
    )


def _groups(result: MergeResult) -> Iterator[Table]:
    if not result.groups:
        return
    groups = result.groups
    columns = (
        [group.name for group in groups],
        [str(group.units) for group in groups],
        [str(group.moved) for group in groups],
        [percent(group.kept_before, 1) for group in groups],
        [percent(group.kept, 1) for group in groups],
    )
    yield Table(
        title="How well the groups match",
        note="Kept: the share of the squared weights on a group's units that is left in the mean "
        "of the networks, as given and in the chosen order: 100 % for equal networks, "
        f"{percent(1 / len(result.weights), 0)} for units that have nothing to do with each other.",
        columns=("group", "units", "moved", "kept as given", "kept"),
        rows=tuple(zip(*columns, strict=True)),
    )


def _settings(result: MergeResult) -> dict[str, str]:
    named = {
        "weights": ", ".join(f"{weight:.4g}" for weight in result.weights),
        "cycle error": "" if result.cycle_error is None else number(result.cycle_error),
        "fitted on": plural(result.chosen.fitted, "example") if result.chosen.fitted else "",
        "seconds": number(result.seconds, 3),
        "seed": str(result.seed),
    }
    return {name: text for name, text in named.items() if text}
