"""Proofs of what a search has found, and what they leave for it to look through once more."""

from dataclasses import replace

import torch

from gpu_align._align._result import AlignmentResult
from gpu_align._align._settings import Settings
from gpu_align._problem import AlignmentProblem, Hypotheses
from gpu_align._proof import Proof, narrowed, prove
from gpu_align._search import BeamDescent, run_search
from gpu_align._status import Status


def proved(
    problem: AlignmentProblem, best: Hypotheses, settings: Settings
) -> tuple[Hypotheses, list[Proof | None]]:
    """Prove the hypothesis of each model; one that turns out not to be optimal is replaced.

    Ctrl-C ends the present proof, which keeps its bound, and leaves the others out.

    Args:
        problem: in float64.
        best: one hypothesis for each model.
        settings: with the seconds for each.
    """
    proofs: list[Proof | None] = [None] * len(best)
    for model in range(len(best)):
        proof = _proof(problem, best, model, settings)
        better = None if proof.status is Status.INTERRUPTED else _searched(problem, proof, settings)
        if better is not None:
            index = torch.full((1,), model, device=best.model.device)
            best = best.put(index, better.perms, better.objective)
            proof = _proof(problem, best, model, settings)
        proofs[model] = proof
        if proof.status is Status.INTERRUPTED:
            break
    return best, proofs


def _proof(problem: AlignmentProblem, best: Hypotheses, model: int, settings: Settings) -> Proof:
    assert settings.prove is not None
    permutation = problem.permutation(best, model)
    return prove(
        problem, permutation, seconds=settings.prove, model=model, progress=settings.progress
    )


def _searched(problem: AlignmentProblem, proof: Proof, settings: Settings) -> Hypotheses | None:
    """Search among the pairs that a proof leaves; return what is better, None if nothing is."""
    if settings.evidence is not None:
        return None  # what activations prefer may be further away in the weights
    if proof.is_optimal or proof.candidates == proof.pairs:
        return None
    left = narrowed(problem, proof)
    start = left.hypotheses(left.vectors(proof.permutation))
    found = run_search(BeamDescent(), left, seed=settings.seed, start=start).best
    is_better = problem.unit * float(found.objective) < proof.distance - 2 * proof.tolerance
    return found if is_better else None


def with_proof(result: AlignmentResult, proof: Proof) -> AlignmentResult:
    """Return a result with what was proved about its permutation."""
    status = Status.PROVED_OPTIMAL if proof.is_optimal else result.status
    bound = max(result.lower_bound, min(proof.lower_bound, result.distance))
    return replace(result, proof=proof, status=status, lower_bound=bound)
