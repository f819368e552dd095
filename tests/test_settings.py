"""What `align` accepts as its settings, and how it refuses everything else."""

from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp

from gpu_align import (
    Annealing,
    Budget,
    CoordinateDescent,
    InputError,
    Portfolio,
    UnavailableError,
    align,
)
from gpu_align._align import Settings
from gpu_align._search import SEARCHES

DEFAULTS: dict[str, Any] = {
    **{"search": None, "metric": "l2", "device": "cpu", "seed": 0, "budget": None},
    "progress": None,
}


def settings(**chosen: object) -> Settings:
    return Settings.of(**{**DEFAULTS, **chosen})


def test_searches_are_known_by_the_names_of_the_command() -> None:
    for name, entry in SEARCHES.items():
        if entry.needs_data or entry.needs_aligner:
            continue  # a name alone does not make it
        search = settings(search=name).search
        assert search == entry.make()
        assert search is None or isinstance(search, entry.kind)
    own = Annealing(starts=3)
    assert settings(search=own).search is own


TAKEN = {
    "seed": [0, -1, 2**40, np.int64(3), True],
    "device": ["cpu", torch.device("cpu"), "cpu:0", torch.device("cpu", 0), "auto"],
    "budget": [Budget(steps=3), Budget(seconds=np.float32(2)), Budget(steps=np.int64(3))],
    "progress": [print],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, each in TAKEN.items() for v in each])
def test_what_is_taken(name: str, value: object) -> None:
    kept = settings(**{name: value})
    if name == "device":
        assert kept.engine.device == torch.device("cpu") or value == "auto"
    else:
        assert getattr(kept, name) == value
    assert type(kept.seed) is int


REFUSED: list[tuple[str, object, str]] = [
    ("search", CoordinateDescent, r"make an object of the class: search=CoordinateDescent\(\)"),
    ("search", "decent", "expected a search among portfolio, .*descent.*got search='decent'"),
    ("search", 5, "or a name such as 'descent'"),
    ("search", dict, "got search=the class dict"),
    ("budget", 5, r"Budget\(seconds=5\)"),
    ("budget", {"seconds": 5}, r"got budget=\{'seconds': 5\}"),
    ("budget", Budget, "got budget=the class Budget"),
    ("seed", None, "expected a whole number, got seed=None"),
    ("seed", "x", "got seed='x'"),
    ("seed", 1.5, "got seed=1.5"),
    ("seed", list(range(1000)), "got seed=an object of list"),
    ("device", None, "expected a device among"),
    ("device", 0, "expected a device among"),
    ("device", ["cpu"], "expected a device among"),
    ("device", "cpu:x", "expected a device among"),
    ("device", "auto:1", "expected a device among"),
    ("device", "", "expected a device among"),
    ("device", torch.device("meta"), "expected a device among"),
    ("metric", None, "expected a metric among"),
    ("metric", ["l2"], "expected a metric among"),
    ("progress", 3, "function that takes a Progress"),
    ("spec", "spec.json", "PermutationSpec.from_json"),
    ("spec", {}, "PermutationSpec.from_json"),
]


@pytest.mark.parametrize(("name", "value", "text"), REFUSED)
def test_what_is_refused(name: str, value: object, text: str) -> None:
    state = mlp([3, 4, 2]).state_dict()
    with pytest.raises(InputError, match=text):
        align(state, state, **{name: value})
    with pytest.raises(InputError, match=text):
        align([state], state, **{name: value})


@pytest.mark.parametrize("limits", [{"steps": "3"}, {"seconds": "x"}, {"steps": [1]}])
def test_a_budget_of_no_numbers_is_refused(limits: dict) -> None:
    with pytest.raises(InputError, match="expected a finite budget"):
        Budget(**limits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 1)])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UnavailableError, match="cannot be used"):
        settings(device=device)


def test_a_device_that_is_not_current_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_align._device import _backend

    there = _backend.Backend("there", True, "there")
    monkeypatch.setattr(_backend, "_on_gpu", lambda library: there)
    monkeypatch.setattr(_backend, "_cuda", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert settings(device="cuda:0").engine.device == torch.device("cuda", 0)
    assert settings(device=torch.device("cuda")).engine.device == torch.device("cuda", 0)
    with pytest.raises(UnavailableError, match=r"torch.cuda.set_device\(1\)"):
        settings(device="cuda:1")


def test_a_name_does_what_its_search_does() -> None:
    torch.manual_seed(0)
    source, target = (mlp([4, 9, 8, 3]).state_dict() for _ in range(2))
    named = align(source, target, search="descent", seed=2)
    built = align(source, target, search=CoordinateDescent(1, initial="random"), seed=2)
    assert named.distance == built.distance
    assert named.search == "CoordinateDescent"
    whole = align(source, target, search="portfolio", budget=Budget(steps=2))
    assert whole.distance == align(source, target, budget=Budget(steps=2)).distance
    assert isinstance(Portfolio(), SEARCHES["portfolio"].kind)
