"""What stages prove one after another, and the check of a proof from its duals alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_align._errors import GpuAlignError
from gpu_align._problem import AlignmentProblem
from gpu_align._process import full_precision, torch_threads
from gpu_align._proof._convex import Majorant, judge_convex
from gpu_align._proof._duals import Duals, best_duals
from gpu_align._proof._leftover import Leftover, Listing
from gpu_align._proof._proof import AnyStage, Proof
from gpu_align._proof._reduced import Reduced, reduced, supposed
from gpu_align._proof._stage import Stage, Verdict, judge
from gpu_align._symmetry import Permutation

_ROUNDING = 1e-9
"""Of the squared norms of both networks: no difference of two distances."""


def rounding_of(form: Reduced) -> float:
    """Return the difference of two distances that counts as none."""
    return _ROUNDING * form.scale


@dataclass(frozen=True)
class Known:
    """What stages have proved so far.

    Attributes:
        bound: D of every permutation is at least this.
        alive: group -> bool [n, p], pairs that a permutation below the threshold may have.
        allowance: for rounding, within the bound.
    """

    bound: float
    alive: Mapping[str, Tensor]
    allowance: float = 0.0

    @classmethod
    def nothing(cls, form: Reduced) -> "Known":
        """Return what is known before the first stage."""
        return cls(
            form.least, {g: torch.ones_like(w, dtype=torch.bool) for g, w in form.gains.items()}
        )

    @property
    def candidates(self) -> int:
        """Number of pairs that are alive."""
        return sum(int(mask.sum()) for mask in self.alive.values())

    def after(self, found: Verdict, threshold: float) -> "Known":
        """Return what is known after one more stage, judged with the pairs that are alive.

        A permutation with an excluded pair is at least at the threshold; so the bound over all of
        them is the smaller one of that and what the stage proves for the others.
        """
        alive = {
            group: mask & (found.costs[group] < threshold) for group, mask in self.alive.items()
        }
        bound = max(self.bound, min(threshold, found.bound))
        return Known(bound, alive, found.allowance)


class Judge:
    """Says what stages of a problem prove."""

    def __init__(self, form: Reduced, best: Duals, listing: Listing) -> None:
        """Take a problem, what solves assignments, and what lists its permutations."""
        self._form, self._best, self.listing = form, best, listing
        self._majorant: Majorant | None = None

    @property
    def majorant(self) -> Majorant:
        """The concave majorant of a problem without signs."""
        self._majorant = self._majorant or Majorant.of(self._form)
        return self._majorant

    def __call__(self, stage: AnyStage, alive: Mapping[str, Tensor]) -> Verdict:
        """Return what a stage proves for permutations of the pairs that are alive."""
        if isinstance(stage, Stage):
            return judge(self._form, stage, alive)
        if isinstance(stage, Leftover):
            return self.listing.judge(alive)
        return judge_convex(self._form, stage, alive, self._best, self.majorant)


def advance(judged: Judge, known: Known, stage: AnyStage, threshold: float) -> Known:
    """Return what is known after one more stage of a proof."""
    if not isinstance(stage, Stage) or stage.given is None:
        return known.after(judged(stage, known.alive), threshold)
    group, i, j = stage.given
    if judged(stage, supposed(known.alive, group, i, j)).bound < threshold:
        return known
    return without(known, group, i, j)


def without(known: Known, group: str, i: int, j: int) -> Known:
    """Return what is known once a pair of a group is excluded."""
    alive = known.alive[group].clone()
    alive[i, j] = False
    return replace(known, alive={**known.alive, group: alive})


def objective_of(problem: AlignmentProblem, permutation: Permutation, model: int) -> float:
    """Return D, less twice its evidence, in the problem's own unit."""
    perms = problem.vectors(permutation)
    return float(problem.objective(perms, torch.full((1,), model, device=problem.device)))


def check_proof(problem: AlignmentProblem, proof: Proof) -> float:
    """Check a proof from its duals alone, and return the lower bound that they prove.

    Of what the proof says of itself nothing is believed: the distance of its permutation and what
    its duals exclude and bound are computed anew, in float64.

    Args:
        problem: what it is a proof for, made as it was then.
        proof: to be checked.

    Raises:
        GpuAlignError: it was changed, its duals prove less than it claims, or it belongs to another
            problem.
    """
    if proof.digest() != proof.seal:
        raise GpuAlignError(
            "the proof was changed after it was made, so it proves nothing; make it anew"
        )
    if proof.permutation.spec != problem.spec or not 0 <= proof.model < problem.models:
        raise GpuAlignError(
            "the proof is about networks of another spec; check it with the problem it was made for"
        )
    with torch_threads.held(single=True), full_precision():
        problem = problem.in_float64()
        form = reduced(problem, proof.model)
        distance, rounding = (
            objective_of(problem, proof.permutation, proof.model),
            rounding_of(form),
        )
        slack = problem.unit * rounding
        if not abs(problem.unit * distance - proof.distance) <= slack:
            raise GpuAlignError(
                f"the proof's permutation has distance {problem.unit * distance:.9g} here, and not "
                f"{proof.distance:.9g}; check it with the problem it was made for"
            )
        listing = Listing(problem, proof.model)
        known, judged = Known.nothing(form), Judge(form, best_duals(problem.engine), listing)
        for stage in proof.stages:
            known = advance(judged, known, _fitting(form, stage), distance - rounding)
    bound = problem.unit * known.bound
    least = proof.distance - 2 * slack if proof.is_optimal else -torch.inf
    if not max(proof.lower_bound, least) <= bound + 1e-3 * slack:
        raise GpuAlignError(
            f"the proof claims that no permutation is closer than {proof.lower_bound:.9g}, but its "
            f"duals prove {bound:.9g} only; it was changed, or belongs to another problem"
        )
    for group, mask in known.alive.items():
        claimed = proof.alive.get(group)
        if (
            claimed is None
            or claimed.shape != mask.shape
            or bool((mask.cpu() & ~claimed.cpu()).any())
        ):
            raise GpuAlignError(
                f"the proof excludes pairs of group {group!r} that its duals do not; it was changed"
            )
    return bound


def _fitting(form: Reduced, stage: AnyStage) -> AnyStage:
    """Return a stage on the device of the problem, if its duals are of its shapes and finite."""
    expected = {name: tensor.shape for name, tensor in type(stage).empty(form).tensors()}
    found = dict(stage.tensors())
    if expected != {name: tensor.shape for name, tensor in found.items()}:
        raise GpuAlignError(
            "the proof has duals of other shapes; check it with the problem it was made for"
        )
    if isinstance(stage, Stage) and stage.given is not None:
        group, i, j = stage.given
        units, columns = form.gains[group].shape if group in form.gains else (0, 0)
        if not (0 <= i < units and 0 <= j < columns):
            raise GpuAlignError(f"the proof supposes {stage.given}, a pair that there is not")
    if not all(
        tensor.dtype == torch.float64 and tensor.isfinite().all() for tensor in found.values()
    ):
        raise GpuAlignError("the proof has duals that are no finite float64 numbers; make it anew")
    return stage.to(next(iter(form.gains.values())).device) if found else stage
