"""The benches of learning on weights run; a layer that is wrong gets no time."""

from functools import partial
from pathlib import Path

import pytest
import torch

from bench import inr_digits, learn_layer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[dict]]]:
    recorded: list[tuple[str, list[dict]]] = []
    monkeypatch.setattr(learn_layer, "CASES", {"2-3-1": (2, 3, 1)})
    monkeypatch.setattr(learn_layer, "TURNS", 2)
    monkeypatch.setattr(learn_layer, "record", lambda name, rows: recorded.append((name, rows)))
    monkeypatch.delenv("GPU_ALIGN_DWSNETS", raising=False)
    return recorded


def test_it_records_a_row_for_each_way(small: list[tuple[str, list[dict]]]) -> None:
    learn_layer.main(["--record"])
    ((name, rows),) = small
    assert name == "learn_layer"
    assert [(row["network"], row["way"]) for row in rows] == [("2-3-1", "gpu-align")]
    assert rows[0]["ms"]["repetitions"] == 2


@pytest.mark.usefixtures("small")
def test_a_layer_that_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(learn_layer.EquivariantLinear):
        def forward(self, features: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(y.cumsum(1) for y in super().forward(features))

    monkeypatch.setattr(learn_layer, "EquivariantLinear", Wrong)
    with pytest.raises(SystemExit, match="does not commute"):
        learn_layer.main()


def test_digits_are_told_from_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded: list[tuple[str, list[dict]]] = []
    small = partial(inr_digits.SirenRecipe, hidden=(4, 4), steps=2)
    monkeypatch.setattr(inr_digits, "SirenRecipe", small)
    monkeypatch.setattr(inr_digits, "QUICK", 40)
    monkeypatch.setattr(inr_digits, "record", lambda name, rows: recorded.append((name, rows)))
    inr_digits.main(["--quick", "--record", "--zoo", str(tmp_path)])
    ((name, rows),) = recorded
    assert name == "inr_digits"
    assert [len(row["runs"]) for row in rows if "model" in row] == [1] * 6
    assert all(0 <= run["accuracy"] <= 1 for row in rows for run in row.get("runs", ()))
    assert len([row for row in rows if "between_classes" in row]) == 3


def test_no_image_is_in_two_parts() -> None:
    images = torch.arange(1797).repeat(2)
    facts = {"image": images, "label": images % 10}
    task = inr_digits.split(inr_digits.Zoo({}, facts, {}))
    shown = [set(images[part].tolist()) for part in task.parts]
    assert [len(part) for part in shown] == [1200, 200, 397]
    assert len(set.union(*shown)) == 1797
