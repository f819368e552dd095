"""The certificate of a result in words: what is proved, what was measured, what is not known."""

from dataclasses import dataclass
from typing import Literal

from gpu_align._align import ResultRecord
from gpu_align._proof import ProofRecord
from gpu_align._report._format import number, percent, plural
from gpu_align._report._parse import Entry
from gpu_align._symmetry import PRESERVED


@dataclass(frozen=True)
class Check:
    """One line of the certificate.

    Attributes:
        verdict: "yes" and "no" for what was decided, "open" for what was not.
        title: what is certified.
        answer: the verdict in words, with its number.
        note: how it is known, and what it does not say.
    """

    verdict: Literal["yes", "no", "open"]
    title: str
    answer: str
    note: str


def checks(entry: Entry) -> list[Check]:
    """Return the certificate of a result."""
    result = entry.result
    lines = [_permutation(result), _function(result), _gaps(result)]
    if result.proof is not None:
        lines.append(_proof(result.proof))
    if entry.bound is not None:
        lines.append(_bound(result, entry.bound))
    return lines


def _permutation(result: ResultRecord) -> Check:
    where = f"in {plural(len(result.groups), 'group')}"
    inside = sum(len(group.inside) for group in result.groups)
    if inside:
        where += f" and {inside} inside their units"
    return Check(
        "yes",
        "Valid permutation",
        f"yes, {where}" if result.groups else "yes, nothing can move",
        "Every unit is used exactly once; this is checked when a permutation is made.",
    )


def _function(result: ResultRecord) -> Check:
    title, difference = "Function preserved", result.function_difference
    if difference is None:
        reason = result.function_note.removeprefix("not checked").lstrip(": ")
        return Check("open", title, "not checked", _sentence(reason))
    note = f"{_sentence(result.function_note)} The limit is {number(result.function_limit, 1)}."
    preserved = bool(result.function_preserved)
    answer = f"{'yes' if preserved else 'no'}, largest relative difference {number(difference, 3)}"
    return Check("yes" if preserved else "no", title, answer, note)


def _gaps(result: ResultRecord) -> Check:
    title = "Optimal group by group"
    if not result.groups:
        return Check("open", title, "no groups", "No group has more than one unit.")
    note = (
        "By duality, for each group with all others fixed. It says nothing about moving several "
        "groups at once."
    )
    gaps = {group.name: group.relative_gap for group in result.groups}
    loose = [group for group in result.groups if not group.is_optimal]
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    worst = max(known, key=lambda name: known[name], default=result.groups[0].name)
    largest = f"largest gap {number(gaps[worst], 2)} of |dual|"
    if not loose:
        return Check("yes", title, f"yes, {largest}", note)
    answer = f"not shown for {len(loose)} of {plural(len(gaps), 'group')}; {largest}, in {worst}"
    note += (
        " A gap stays open where the search ended early; and for a group on two axes of one "
        "tensor the dual is a bound that may be loose."
    )
    return Check("open", title, answer, note)


def _proof(proof: ProofRecord) -> Check:
    title = "Optimal over all groups"
    note = "By duals of all pairs of units at once, which can be checked without the search."
    if proof.is_optimal:
        return Check("yes", title, "yes, proved", note)
    left = f"{proof.candidates} of {proof.pairs} pairs of units are left"
    return Check("open", title, f"not shown; gap {percent(proof.gap, 2)}, {left}", note)


def _bound(result: ResultRecord, bound: float) -> Check:
    title = "Lower bound"
    if result.distance <= bound * (1 + PRESERVED):
        note = "The distance meets the bound: no permutation whatever is better."
        return Check("yes", title, f"{number(bound)}, reached", note)
    open_share = percent(1 - bound / result.distance)
    note = (
        f"No permutation whatever has a smaller distance than this, so at most {open_share} of the "
        "distance found could still be gained. The bound may be loose: it does not say that so "
        "much can be gained."
    )
    return Check("open", title, number(bound), note)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""
