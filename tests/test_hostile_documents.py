"""Documents that nobody vouches for: refused within a second, by a message and exit code 2."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_bad_input import mlp_state
from test_resume import interrupted_store
from test_search_store import resumed_from
from typer.testing import CliRunner

from gpu_align import (
    InputError,
    Permutation,
    PermutationSpec,
    Progress,
    SpecError,
    align,
    chain_spec,
    save_checkpoint,
)
from gpu_align._cli._main import app
from gpu_align._search import _store

PATIENCE = 5.0
"""Seconds: what is meant is one, on a machine that does nothing else."""

DEEP = "[" * 100_000 + "]" * 100_000
NESTED = "[" * 900 + "]" * 900
HUGE = "9" * 5000
LARGE = "9" * 4000


def ones(count: int) -> str:
    return ", ".join(["1"] * count)


def cut(count: int) -> str:
    """An axis of so many segments."""
    return f'{{"concat": [{ones(count)}]}}'


def spec_text(**changes: Any) -> str:
    return json.dumps(json.loads(chain_spec(mlp_state(0)).to_json()) | changes)


def tensors(axes: str) -> str:
    return f'{{"format": "gpu-align/spec", "version": 2, "groups": {{"g": 2}}, "tensors": {axes}}}'


SPECS: dict[str, str] = {
    "deep": DEEP,
    "deep inside": tensors(f'{{"w": [{DEEP}]}}'),
    "nested": tensors(f'{{"w": [{NESTED}]}}'),
    "nested origin": spec_text(origin="x").replace('"x"', DEEP),
    "huge size": tensors(f'{{"w": [{HUGE}]}}'),
    "large size": tensors(f'{{"w": [{LARGE}]}}'),
    "large group": spec_text(groups={"0": 10**30}),
    "large family": spec_text(groups={"a": 2**40, "0": {"size": 2**40, "parent": "a"}}),
    "large product": tensors(
        f'{{"w": [{{"product": [{ones(300).replace("1", "1" + 9 * "0")}]}}]}}'
    ),
    "large tensor": tensors('{"w": [4611686018427387904, 4]}'),
    "many segments": tensors(f'{{"w": [{cut(3000)}, {cut(3000)}]}}'),
    "many pieces": tensors(json.dumps({f"w{n}": [{"concat": [1] * 100}] * 2 for n in range(20)})),
    "many factors": tensors(f'{{"w": [{{"product": [{ones(5000)}]}}]}}'),
    "large version": spec_text(version="x" * 10**6),
    "long value": tensors('{"w": "%s"}' % ("x" * 10**6)),
    "eps": spec_text(
        norm_scales=[{"weight": "0.weight", "bias": None, "mean": "m", "variance": "v", "eps": 1}]
    ).replace('"eps": 1', f'"eps": {LARGE}'),
    "eps of nothing": spec_text(
        norm_scales=[
            {"weight": "0.weight", "bias": None, "mean": "m", "variance": "v", "eps": float("nan")}
        ]
    ),
}


@pytest.mark.parametrize("text", SPECS.values(), ids=SPECS)
def test_specs(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(SpecError) as caught:
        PermutationSpec.from_json(text)
    assert time.monotonic() - began < PATIENCE
    assert len(str(caught.value)) < 2000


def test_a_spec_with_many_pieces_is_read() -> None:
    text = tensors(f'{{"w": [{cut(200)}, {cut(200)}]}}')
    assert len(PermutationSpec.from_json(text).tensors["w"].blocks) == 40_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        save_checkpoint(tmp_path / f"{number}.safetensors", mlp_state(number))
    return tmp_path


def assert_refused(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output[:500] or result.exception
    assert result.stderr.startswith("error: ")
    assert len(result.stderr) < 3000


@pytest.mark.parametrize("kind", ["deep", "large group", "many segments"])
def test_specs_on_the_command_line_and_in_permutations(kind: str, folder: Path) -> None:
    Path("spec.json").write_text(SPECS[kind], encoding="utf-8")
    assert_refused("inspect", "--spec", "spec.json")
    vectors = {"0": torch.arange(8)}
    save_file(vectors, "p.safetensors", metadata={"gpu_align_spec": SPECS[kind]})
    assert_refused("apply", "1.safetensors", "p.safetensors", "-o", "new.safetensors")
    assert not Path("new.safetensors").exists()


SIGNS = {
    "bool": torch.ones(8, dtype=torch.bool),
    "complex": torch.ones(8, dtype=torch.complex64),
    "unsigned": torch.ones(8, dtype=torch.uint8),
    "float8": torch.ones(8).to(torch.float8_e5m2),
    "nan": torch.full((8,), torch.nan),
    "two": torch.full((8,), 2),
    "matrix": torch.ones(8, 1, dtype=torch.int64),
}


@pytest.mark.parametrize("signs", SIGNS.values(), ids=SIGNS)
def test_signs_in_permutations(signs: torch.Tensor, folder: Path) -> None:
    groups = {"0": {"size": 8, "signed": True}}
    metadata = {"gpu_align_spec": spec_text(groups=groups)}
    perms = {"0": torch.arange(8)}
    save_file({**perms, "signs^0": signs}, "p.safetensors", metadata=metadata)
    assert_refused("apply", "1.safetensors", "p.safetensors", "-o", "new.safetensors")
    good = torch.tensor([1, -1] * 4)
    save_file({**perms, "signs^0": good}, "p.safetensors", metadata=metadata)
    assert torch.equal(Permutation.load("p.safetensors").signs["0"], good)


VECTORS = [
    torch.arange(8).bool(),
    torch.arange(8).to(torch.complex64),
    torch.arange(8).double(),
    torch.arange(8).to(torch.uint64),
    torch.arange(9),
    torch.tensor(3),
    torch.zeros(8, dtype=torch.int64),
    torch.full((8,), -(2**63)),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector.dtype))
def test_vectors_in_permutations(vector: torch.Tensor, folder: Path) -> None:
    save_file({"0": vector}, "p.safetensors", metadata={"gpu_align_spec": spec_text()})
    assert_refused("apply", "1.safetensors", "p.safetensors", "-o", "new.safetensors")


def result_with(**changes: Any) -> str:
    made = align(mlp_state(1), mlp_state(0), search="descent")
    return json.dumps(made.to_json() | changes)


GROUP = {"name": "0", "units": 8, "moved": 3, "distance_before": 2.0, "distance_after": 1.0}
GROUP |= {"primal": 1.0, "dual": 1.0, "gap": 0.0}
STEP = {"stage": "x", "sweep": 1, "sweeps": None, "best_distance": 1.0, "seconds": 1.0}
STEP |= {"seconds_left": None}
MARK = "MARK"
RESULTS: dict[str, Callable[[], str]] = {
    "deep": lambda: DEEP,
    "deep inside": lambda: result_with(seed=MARK).replace(f'"{MARK}"', DEEP),
    "huge": lambda: result_with(seed=MARK).replace(f'"{MARK}"', HUGE),
    "large seconds": lambda: result_with(seconds=MARK).replace(f'"{MARK}"', LARGE),
    "large distance": lambda: result_with(distance=MARK).replace(f'"{MARK}"', LARGE),
    "large width": lambda: result_with(
        studies={"beam_width": [{"width": 1, "distance": MARK, "seconds": 1.0}]}
    ).replace(f'"{MARK}"', LARGE),
    "list": lambda: result_with(groups=3),
    "group of texts": lambda: result_with(groups=[{**GROUP, "distance_before": "x"}]),
    "group of lists": lambda: result_with(groups=[{**GROUP, "units": [1]}]),
    "group name": lambda: result_with(groups=[{**GROUP, "name": 3}]),
    "history": lambda: result_with(history=[{**STEP, "best_distance": "x"}]),
    "history time": lambda: result_with(history=[{**STEP, "seconds": [1]}]),
    "costs": lambda: result_with(
        cost_matrix={"group": "0", "units": 1, "before": [["x"]], "after": [["y"]]}
    ),
    "alphas": lambda: result_with(alphas=[{"alpha": None, "loss": None, "distance": 1.0}]),
    "texts": lambda: result_with(search=[1, 2]),
    "origin": lambda: result_with(origin={"a": 1}),
    "symmetries": lambda: result_with(log10_symmetries=[1]),
    "assignments": lambda: result_with(assignments="x"),
    "versions": lambda: result_with(versions=[1]),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results(kind: str, folder: Path) -> None:
    Path("r.json").write_text(RESULTS[kind](), encoding="utf-8")
    assert_refused("report", "r.json", "-o", "page.html")
    assert not Path("page.html").exists()


def forged(path: Path, **changes: Any) -> Path:
    """Write a kept search of which some entries of the snapshot, or of its state, are others."""
    kept = interrupted_store(path).path
    with torch.serialization.safe_globals(list(_store.STORED)):
        document = torch.load(kept, weights_only=True)
    snapshot = document["searches"][0]["snapshot"]
    of_state = {n: v for n, v in changes.items() if hasattr(snapshot.state, n) and n != "best"}
    rest = {name: value for name, value in changes.items() if name not in of_state}
    for owner, entries in ((snapshot.state, of_state), (snapshot, rest)):
        for name, value in entries.items():
            made = value(getattr(owner, name)) if callable(value) else value
            object.__setattr__(owner, name, made)
    torch.save(document, kept)
    return kept


STEP_OF = Progress("x", 1, None, 1.0, 1.0, None)
FORGED: dict[str, dict[str, Any]] = {
    "seconds nan": {"seconds": float("nan")},
    "seconds negative": {"seconds": -1.0},
    "seconds text": {"seconds": "x"},
    "seconds infinite": {"seconds": float("inf")},
    "counter negative": {"counter": -1},
    "counter float": {"counter": 1.5},
    "counter huge": {"counter": 10**30},
    "assignments": {"assignments": None},
    "assignments bool": {"assignments": True},
    "splits": {"splits": {"a": 3}},
    "splits list": {"splits": ["a"]},
    "history list": {"history": [STEP_OF]},
    "history of texts": {"history": ("x",)},
    "history nan": {"history": (replace(STEP_OF, best_distance=float("nan")),)},
    "history kinds": {"history": (replace(STEP_OF, step="1"),)},
    "history time": {"history": (replace(STEP_OF, seconds_left=-1.0),)},
    "stage": {"stage": 3},
    "step": {"step": -1},
    "step float": {"step": 2.0},
    "expected": {"expected": "x"},
    "finished": {"finished": "converged"},
    "best objective": {"best": lambda b: replace(b, objective=torch.full_like(b.objective, -1e9))},
    "objective": {"hypotheses": lambda h: replace(h, objective=h.objective - 1.0)},
    "objective nan": {"hypotheses": lambda h: replace(h, objective=h.objective * torch.nan)},
    "objective dtype": {"hypotheses": lambda h: replace(h, objective=h.objective.float())},
    "objective none": {"best": lambda b: replace(b, objective=None)},
    "lineage": {"best": lambda b: replace(b, lineage=b.lineage.float())},
    "model": {"best": lambda b: replace(b, model=b.model + 1)},
    "models": {"best": lambda b: replace(b, models="1")},
    "perms": {"best": lambda b: replace(b, perms=[1])},
    "perms dtype": {
        "best": lambda b: replace(b, perms={n: p.double() for n, p in b.perms.items()})
    },
    "perms text": {"best": lambda b: replace(b, perms=dict.fromkeys(b.perms, "x"))},
    "hypotheses": {"hypotheses": None},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_kept_searches(changes: dict[str, Any], tmp_path: Path) -> None:
    path = forged(tmp_path / "s", **changes)
    with pytest.raises(InputError, match="cannot resume the search"):
        resumed_from(path)


@pytest.mark.parametrize("memory", [3, "x", {"a": 1}, (), [None]])
def test_kept_searches_with_another_memory(memory: object, tmp_path: Path) -> None:
    path = forged(tmp_path / "s", memory=memory)
    with pytest.raises(InputError, match="cannot resume the search"):
        resumed_from(path)


def test_what_is_not_forged_is_resumed(tmp_path: Path) -> None:
    assert resumed_from(forged(tmp_path / "s")).history
