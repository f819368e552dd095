"""What `align` says when it is done."""

from pathlib import Path

from rich.table import Table

from gpu_align._align import (
    AlignmentResult,
    GroupReport,
    change_in_words,
    evidence_in_words,
    function_in_words,
    phases_in_words,
    status_in_words,
)
from gpu_align._cli._terminal import columns, console, duration, facts, number, print_line
from gpu_align._symmetry import outline

INSIDE = "  "
"""What a group inside the units of the one above it is indented by."""

_SHOWN_GROUPS = 20


def print_summary(result: AlignmentResult, source: Path, target: Path) -> None:
    """Print distances, certificates and groups."""
    print_line()
    print_line(f"{source} -> {target}")
    print_line()
    screen = console()
    screen.print(
        facts(
            {
                "distance before": f"{number(result.distance_before)}  ({result.metric})",
                "distance after": f"{number(result.distance)}  ({change_in_words(result)})",
                "lower bound": f"{number(result.lower_bound)}  (no order of the units is closer)",
                **_phases(result),
                **_proof(result),
                "function": function_in_words(result),
                "evidence": evidence_in_words(result),
                "found by": result.search,
                "status": status_in_words(result),
                "time": f"{duration(result.seconds)}, {result.assignments} assignments, "
                f"seed {result.seed}, {result.device}",
                "symmetries": _symmetries(result),
                **_memory(result),
            }
        )
    )
    if result.groups:
        screen.print(_group_table(result.groups))
        screen.print(
            "gap: by what share another order of this group alone might be better, the others "
            "fixed; 1e-06 and less is rounding"
        )
        if any(group.inside for group in result.groups):
            print_line(
                "indented: units inside each unit of the group above, reordered along with it"
            )


def _phases(result: AlignmentResult) -> dict[str, str]:
    said = phases_in_words(result)
    return {"phases": said} if said else {}


def _proof(result: AlignmentResult) -> dict[str, str]:
    proof = result.proof
    if proof is None:
        return {}
    return {
        "proof": f"{proof.in_words()} ({duration(proof.seconds)}, {proof.method}: {proof.note})"
    }


def _memory(result: AlignmentResult) -> dict[str, str]:
    parts = "; ".join(f"{what}: {parts}" for what, parts in result.splits.items())
    return {"memory": f"short, so computed in parts ({parts})"} if parts else {}


def _symmetries(result: AlignmentResult) -> str:
    signed = outline(result.permutation.spec).signed_units
    signs = f" and 2^{signed} sign flips" if signed else ""
    return f"10^{result.log10_symmetries:.1f}{signs}, {result.origin}"


def _group_table(groups: tuple[GroupReport, ...]) -> Table:
    table = columns(
        *("group", "units", "moved", "before", "after", "gap"),
        numbers=("units", "moved", "before", "after", "gap"),
    )
    for group in groups[:_SHOWN_GROUPS]:
        before, after = number(group.distance_before), number(group.distance_after)
        table.add_row(
            group.name,
            str(group.units),
            str(group.moved),
            before,
            after,
            _share(group.gap, group.dual),
        )
        for child in group.inside:
            units = f"{group.units} × {child.units}"
            table.add_row(f"{INSIDE}{child.name}", units, str(child.moved))
    if len(groups) > _SHOWN_GROUPS:
        table.add_row(f"and {len(groups) - _SHOWN_GROUPS} more (see --json)")
    return table


def _share(gap: float, dual: float) -> str:
    return "0" if gap == 0 else f"{gap / max(abs(dual), gap):.0e}"
