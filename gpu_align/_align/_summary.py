"""A result in words: one line, a few lines, or a table for a notebook."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpu_align._errors import folded
from gpu_align._status import Status
from gpu_align._symmetry import PRESERVED, counted, html_table

if TYPE_CHECKING:
    from gpu_align._align._result import ResultRecord

UNSEEN = "without data a lower distance can be a worse merge"

_SHOWN = 8
"""Groups that are named."""

_NONE_WITH_PHASES = "and with these phases there is none"


def one_line(result: "ResultRecord") -> str:
    """Return what `repr` shows."""
    parts = [
        f"distance={result.distance:.6g}",
        f"distance_before={result.distance_before:.6g}",
        f"lower_bound={result.lower_bound:.6g}",
        f"metric={result.metric!r}",
        f"status={result.status and result.status.name}",
        f"function_preserved={result.function_preserved}",
        counted(len(result.groups), "group"),
    ]
    return f"{type(result).__name__}({', '.join(parts)})"


def rows(result: "ResultRecord") -> dict[str, str]:
    """Return what is known about a result but for its history and pictures: name -> words."""
    moved = [f"{group.name} {group.moved} of {group.units}" for group in result.groups]
    found = {
        "distance before": f"{result.distance_before:.6g} ({result.metric})",
        "distance after": f"{result.distance:.6g} ({change_in_words(result)})",
        "lower bound": f"{result.lower_bound:.6g}",
        "phases": phases_in_words(result),
        "proof": "" if result.proof is None else result.proof.in_words(),
        "function": function_in_words(result),
        "evidence": evidence_in_words(result),
        "found by": result.search,
        "status": status_in_words(result),
        "seconds": "" if math.isnan(result.seconds) else f"{result.seconds:.3g}",
        "symmetries": f"10^{result.log10_symmetries:.1f}",
        "units moved": folded(moved, _SHOWN),
    }
    return {name: text for name, text in found.items() if text}


def text(facts: Mapping[str, str]) -> str:
    """Return names and values one per line."""
    width = max(map(len, facts), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def html(result: "ResultRecord") -> str:
    """Return the table of a notebook."""
    return html_table(type(result).__name__, rows(result))


def change_in_words(result: "ResultRecord") -> str:
    """Say by how much the networks have come closer."""
    if result.distance_before == 0:
        return "the networks are equal"
    return f"{100 * (result.distance / result.distance_before - 1):+.1f} %"


def status_in_words(result: "ResultRecord") -> str:
    """Say how the search ended; where it found nothing better, what is proved of that."""
    if result.status is None:
        return ""
    if result.status is not Status.CONVERGED or not result.groups:
        return result.status.value
    loose = [group for group in result.groups if not group.is_optimal]
    if not loose:
        there_is_none = "and there is none" if result.shifted is None else _NONE_WITH_PHASES
        return f"{result.status.value}, {there_is_none}"
    widest = max(loose, key=lambda group: group.gap)
    return (
        f"{result.status.value}; another one of {widest.name} alone could take at most "
        f"{2 * widest.gap:.3g} off the distance"
    )


def phases_in_words(result: "ResultRecord") -> str:
    """Say how many phases are shifted, and what is proved of phases; nothing where none are."""
    if result.shifted is None:
        return ""
    return (
        f"{counted(result.shifted, 'unit')} shifted by half periods; the lower bound is over all "
        "phases, gaps are with these"
    )


def evidence_in_words(result: "ResultRecord") -> str:
    """Say what told which units are alike."""
    if result.evidence == "weights":
        unseen = "" if result.alphas else f"; {UNSEEN}"
        return f"weights alone{unseen}{_choice_in_words(result)}"
    alpha = "" if result.alpha is None else f", alpha {result.alpha:g}"
    kind = "weights and activations" if alpha else "activations"
    return f"{kind}{alpha}{_choice_in_words(result)}"


def _choice_in_words(result: "ResultRecord") -> str:
    """Say what alpha was chosen by, if it was."""
    tried = (
        f"{'not finite' if trial.loss is None else f'{trial.loss:.4g}'} with {trial.alpha:g}"
        for trial in result.alphas
    )
    listed = ", ".join(tried)
    return f", chosen by the midpoint's loss on held-back data: {listed}" if listed else ""


def function_in_words(result: "ResultRecord") -> str:
    """Say whether the function is the same, as far as it is known."""
    if result.function_difference is None:
        return result.function_note
    precision = "float64" if result.function_limit == PRESERVED else "partly float32"
    kept = "preserved" if result.function_preserved else "CHANGED"
    return f"{kept}: outputs differ by {result.function_difference:.1e} relative ({precision})"
