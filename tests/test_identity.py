"""What a kept search is known by: all that its result depends on, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import pair
from torch import Tensor

from gpu_align import (
    AlignmentProblem,
    Annealing,
    Budget,
    InputError,
    Progress,
    ScipyAssignment,
    SearchStore,
    run_search,
)
from gpu_align._search import Outcome

PLAIN = pair("mlp")
SEARCH = Annealing(starts=2, steps=4)


def evidence(seed: int = 0) -> dict[str, Tensor]:
    return {"0": torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()}


def problem(networks: object = PLAIN, **options: object) -> AlignmentProblem:
    return AlignmentProblem(networks.source, networks.target, networks.spec, **options)


def start(shift: int) -> object:
    given = problem(evidence=evidence())
    perms = {name: torch.arange(n).roll(shift)[None] for name, n in given.sizes.items()}
    return given.hypotheses(perms)


def stop(progress: Progress) -> None:
    if progress.step == 2:
        raise KeyboardInterrupt


def run(path: Path, resume: bool, **changes: object) -> Outcome:
    arguments: dict = {
        "problem": problem(evidence=evidence()),
        "seed": 3,
        "start": start(1),
        "progress": None if resume else stop,
    }
    store = SearchStore(path, resume=resume)
    return run_search(SEARCH, **(arguments | changes), store=store)


OTHERS: dict[str, dict[str, object]] = {
    "target": {
        "problem": problem(replace(PLAIN, target=pair("mlp", 5).target), evidence=evidence())
    },
    "evidence": {"problem": problem(evidence=evidence(1))},
    "no evidence": {"problem": problem()},
    "start": {"start": start(2)},
    "no start": {"start": None},
    "solver": {"solver": ScipyAssignment()},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_another_run_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "s"
    run(path, resume=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="it is another one"):
        run(path, resume=True, **changes)
    assert path.read_bytes() == before
    assert len(run(path, resume=True).history) > 2


def test_a_budget_may_be_another(tmp_path: Path) -> None:
    run(tmp_path / "s", resume=False)
    assert len(run(tmp_path / "s", resume=True, budget=Budget(steps=3)).history) == 3


def test_the_identity_has_exactly_these_parts(tmp_path: Path) -> None:
    run(tmp_path / "s", resume=False)
    assert set(torch.load(tmp_path / "s", weights_only=False)["searches"][0]["identity"]) == {
        "the version of gpu-align",
        "the search",
        "the solver",
        "the seed",
        "the metric",
        "the precision",
        "the device",
        "the symmetries",
        "the weights of the source",
        "the weights of the target",
        "the evidence or the start",
    }
