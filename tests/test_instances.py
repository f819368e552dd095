"""The open benchmark: its own evaluation, its records, and what its checker refuses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from bench.instances import weight_matching
from bench.instances.architectures import NETWORKS
from bench.instances.instance import BEST, FOLDER, Instance, Refused, names, records
from bench.instances.instance import NETWORKS as PAIRS
from gpu_align import Permutation, PermutationSpec

ROOT = Path(__file__).parents[1]
KNOWN = records()["instances"]
BARE = (
    "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'scipy', 'gpu_align']);"
    "sys.argv = ['bench.instances', *sys.argv[1:]];"
    "runpy.run_module('bench.instances', run_name='__main__')"
)
"""Runs the checker where neither torch nor SciPy nor gpu_align can be imported."""


def checked(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BARE, "check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_there_are_sixteen_small_ones() -> None:
    assert names() == sorted(NETWORKS) == sorted(KNOWN)
    assert len(KNOWN) == 16
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10e6


def test_the_best_known_are_verified_without_the_engine() -> None:
    done = checked("--all")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines.keys() == KNOWN.keys()
    assert all("(the best known, " in line for line in lines.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_evaluation_agrees_with_the_engine(name: str) -> None:
    instance = Instance.load(name)
    spec = PermutationSpec.from_json((PAIRS / f"{name}.json").read_text(encoding="utf-8"))
    target, source = (load_tensors(PAIRS / f"{name}_{end}.safetensors") for end in "ab")
    permutation = Permutation.random(spec, seed=3)
    moved = permutation.apply({key: tensor.double() for key, tensor in source.items()})
    counted = [key for key, tensor in spec.tensors.items() if tensor.counted]
    expected = sum(float((target[key].double() - moved[key]).square().sum()) for key in counted)
    order = instance.identity()
    perms = {group: perm.numpy() for group, perm in permutation.perms.items()}
    signs = {group: sign.numpy() for group, sign in permutation.signs.items()}
    order = type(order)(order.groups, perms, signs)
    instance.check(order)
    assert instance.value(order) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_records_hold_together(name: str) -> None:
    known, instance = KNOWN[name], Instance.load(name)
    best, bound = known["best"]["value"], known["bound"]["value"]
    held = instance.value(instance.read(BEST / f"{name}.safetensors"))
    assert held == pytest.approx(best, rel=1e-9)
    assert bound <= best * (1 + 1e-9)
    assert known["quick bound"] <= bound * (1 + 1e-6)
    assert best <= known["before"] == pytest.approx(instance.value(instance.identity()))
    assert all(entry["value"] >= best * (1 - 1e-9) for entry in known["entries"].values())
    assert known["bound"]["proved"] == (bound >= best * (1 - 1e-6))


@pytest.mark.parametrize("name", ["mlp_16", "lstm", "gpt"])
def test_plain_weight_matching_ends_where_no_group_gains(name: str) -> None:
    instance, seen = Instance.load(name), []
    order = weight_matching.weight_matching(instance, 0, seen.append)
    instance.check(order)
    values = [instance.value(each) for each in seen]
    assert values == sorted(values, reverse=True)
    assert values[-1] < instance.value(instance.identity())
    again = weight_matching.weight_matching(instance, 0, lambda _: None)
    assert instance.value(again) == values[-1]


def broken(kind: str, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads, inside, stream = "blocks.0", "blocks.0.qkv[1]", "place"
    changed = {name: vector.copy() for name, vector in held.items()}
    match kind:
        case "twice":
            changed[heads][0] = changed[heads][1]
        case "leaves":
            changed[inside] = np.roll(changed[inside], 1)
        case "missing":
            del changed[inside]
        case "real":
            changed[inside] = changed[inside].astype(np.float32)
        case "sign":
            changed[f"signs^{stream}"] = np.ones(len(changed[stream]), np.int8)
    return changed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", "each of 0 .. 3 once"),
        ("leaves", "units leave the unit of"),
        ("missing", "expected the groups"),
        ("real", "once"),
        ("sign", "have no signs"),
    ],
)
def test_what_is_no_order_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpt-mine.safetensors"
    save_file(broken(kind, load_file(BEST / "gpt.safetensors")), path)
    with pytest.raises(Refused, match=message):
        Instance.load("gpt").read(path)
    done = checked(str(path))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_file_of_gpu_align_is_an_answer(tmp_path: Path) -> None:
    spec = PermutationSpec.from_json((PAIRS / "siren.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    Permutation.random(spec, seed=0).save(tmp_path / "siren.safetensors")
    done = checked(str(tmp_path / "siren.safetensors"))
    assert done.returncode == 0
    assert "above the best known" in done.stdout
    unnamed = (tmp_path / "siren.safetensors").rename(tmp_path / "mine.safetensors")
    assert "add --instance" in checked(str(unnamed)).stderr
    assert checked(str(unnamed), "--instance", "siren").returncode == 0
