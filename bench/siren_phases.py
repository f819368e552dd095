"""What signs and phases are worth: distances of small SIRENs of digits after alignment.

    python -m bench.siren_phases

Pairs of SIRENs 2-16-16-1 of different images, from different weights: the mean squared distance
before alignment, and after it over orders alone, orders and signs, and phases too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from gpu_align import AlignmentResult, PermutationSpec, align, discover
from gpu_align._network import load_digits
from gpu_align._symmetry import Axis, Factor, Units
from gpu_align.learn import SirenRecipe, Zoo, make_zoo


def spec_without(spec: PermutationSpec, *, signs: bool) -> PermutationSpec:
    """Return a spec without phases, and without signs too where they are not wanted."""
    groups = {
        name: replace(group, phase=None, signed=group.signed and signs)
        for name, group in spec.groups.items()
    }

    def still(factor: Factor) -> Factor:
        is_seen = isinstance(factor, Units) and not signs
        return replace(factor, power=0) if isinstance(factor, Units) and is_seen else factor

    def axes(given: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple(axis.replaced(still) for axis in given)

    tensors = {n: replace(tensor, axes=axes(tensor.axes)) for n, tensor in spec.tensors.items()}
    return replace(spec, groups=groups, tensors=tensors)


def measured(zoo: Zoo, spec: PermutationSpec) -> tuple[list[AlignmentResult], float]:
    """Align each network of the first half to one of the second; return seconds per pair too."""
    states = [{n: t[i] for n, t in zoo.states.items()} for i in range(len(zoo))]
    half, began = len(states) // 2, time.perf_counter()
    found = [align(s, t, spec=spec) for s, t in zip(states[:half], states[half:], strict=True)]
    return found, (time.perf_counter() - began) / half


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--w0", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    digits, count = load_digits(), 2 * given.pairs
    recipe = SirenRecipe(w0=given.w0, steps=given.steps)
    with tempfile.TemporaryDirectory() as folder:
        zoo = make_zoo(folder, recipe, digits.train_images[:count, 0], digits.train_labels[:count])
    spec = discover(recipe.model(), torch.zeros(3, 2))
    cases = {
        "orders": spec_without(spec, signs=False),
        "orders and signs": spec_without(spec, signs=True),
        "orders, signs and phases": spec,
    }
    for name, own in cases.items():
        found, seconds = measured(zoo, own)
        before, after, bound = (
            statistics.mean(getattr(result, which) for result in found)
            for which in ("distance_before", "distance", "lower_bound")
        )
        shifted = statistics.mean(result.shifted or 0 for result in found)
        print(
            f"{name:<26}before {before:.4f}  after {after:.4f}  bound {bound:.4f}  "
            f"shifted {shifted:.1f} of 32  {seconds:.1f} s a pair",
            flush=True,
        )


if __name__ == "__main__":
    main()
