"""The benches of learning on weights run; a layer that is wrong gets no time."""

import pytest
import torch

from bench import learn_layer


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
