"""The benches of learned aligners run from end to end, and their measures are right."""

import json
from pathlib import Path

import pytest
import torch

from bench import bundled_aligner
from bench.reproduce import deep_align
from bench.reproduce.setting import barrier
from gpu_align.learn import Aligner, AlignerSettings, ClassifierRecipe, TrainingPlan

TINY = deep_align.Sizes(
    ClassifierRecipe(14, (6, 5), steps=40),
    5,
    AlignerSettings(channels=8, rounds=1, features=16),
    TrainingPlan(2, batch=4),
)


def test_what_exceeds_the_line_is_the_barrier():
    losses = torch.tensor([[1.0, 1.5, 3.0], [0.0, 2.0, 1.0], [0.0, 2.0, 5.0]])
    over = deep_align.excess(losses)
    assert over.amax(1).tolist() == [barrier(row) for row in losses.tolist()]
    assert over.mean(1).tolist() == [0.0, 0.5, 0.0]
    found = deep_align.spread([1.0, 2.0, 3.0])
    assert (found["mean"], found["deviation"]) == (2.0, 1.0)
    assert found["error"] == pytest.approx(3**-0.5)


@pytest.mark.slow
def test_an_aligner_beside_searches(tmp_path: Path):
    pytest.importorskip("sklearn")
    rows = deep_align.run(TINY, "digits", tmp_path, "cpu")
    ways = {row["way"]: row for row in rows if "way" in row}
    assert [name for name in ways if deep_align.PUBLISHED.get(name)] == [
        *("weight matching", "naive", "activation matching", "learned")
    ]
    distances = {name: row["distance, spread"]["mean"] for name, row in ways.items()}
    assert distances["learned + descent"] <= distances["learned"] <= distances["learned, no look"]
    assert distances["learned, no look"] < distances["naive"]
    assert ways["weight matching"]["beyond weight matching, spread"]["mean"] == 0
    [facts] = (row["facts"] for row in rows if "facts" in row)
    assert facts["planted, recovered"] == 1
    assert facts["pairs"] == 5
    assert {row["target"] for row in rows if "target" in row} >= {"planted, share not recovered"}
    again = deep_align.run(TINY, "digits", tmp_path, "cpu")
    same = {row["way"]: row["distance, spread"] for row in again if "way" in row}
    assert same == {name: row["distance, spread"] for name, row in ways.items()}


@pytest.mark.slow
def test_the_bundled_aligner_is_made_with_its_log(tmp_path: Path):
    pytest.importorskip("sklearn")
    out = tmp_path / "a.safetensors"
    zoo = ("--zoo", str(tmp_path / "zoo.safetensors"))
    bundled_aligner.main([*zoo, "--out", str(out), "--networks", "6", "--epochs", "1"])
    log = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    aligner = Aligner.load(out)
    assert {name: log[name] for name in aligner.record} == aligner.record
    assert aligner.structure.digest == Aligner.bundled().structure.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.json", "a.safetensors", "zoo.safetensors")
    ]
