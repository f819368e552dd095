"""What results say of the search that found them, alike for all models of a batch."""

from typing import Any

from gpu_align._align._settings import Settings
from gpu_align._device import versions
from gpu_align._search import Outcome, Portfolio, Search
from gpu_align._symmetry import PermutationSpec, outline

_NOT_CHECKED = "not checked: no model with example inputs was given"


def common_facts(
    settings: Settings, spec: PermutationSpec, outcome: Outcome, models: int
) -> dict[str, Any]:
    """Return what the results of all models of a batch have in common, before any check."""
    return {
        "metric": settings.metric.name,
        **_evidence_of(settings),
        "function_difference": None,
        "function_note": _NOT_CHECKED,
        "history": outcome.history,
        "status": outcome.status,
        "seconds": outcome.seconds,
        "assignments": outcome.assignments,
        "seed": settings.seed,
        "device": str(settings.engine),
        "versions": versions(),
        "log10_symmetries": spec.log10_symmetries,
        "origin": spec.origin,
        "outline": outline(spec),
        "batch_size": models,
        "splits": outcome.splits,
    }


def winners_of(search: Search, outcome: Outcome) -> list[str]:
    """Name the search that each best hypothesis descends from, and the stage that finished it."""
    if not isinstance(search, Portfolio):
        return [search.name] * len(outcome.best)
    origins = [search.describe(lineage) for lineage in outcome.best.lineage.cpu().tolist()]
    if len(origins) > 1:
        return origins  # the history is that of all models together
    origin, best = origins[0], outcome.history[-1].best_distance
    near = best + 1e-6 * abs(best)
    last = next((e.stage for e in outcome.history if e.best_distance <= near), origin)
    return [origin if last in (origin, search.name) else f"{origin}, refined by {last}"]


def _evidence_of(settings: Settings) -> dict[str, Any]:
    """Return what results say about it."""
    evidence = settings.evidence
    if evidence is None:
        return {"evidence": "weights"}
    return {"evidence": evidence.kind, "alpha": evidence.alpha if evidence.kind == "both" else None}
