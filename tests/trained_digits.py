"""Small networks that were trained on digits, and a folder of them, for commands that merge."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpu_align import save_checkpoint
from gpu_align._network import Data

NETS = """
from torch import nn

def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)
    )

def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
"""
SHAPE = ("--input-shape", "2,1,8,8")
MLP, CNN = (("--model", f"nets.py:{name}", *SHAPE) for name in ("mlp", "cnn"))
DIGITS = ("--data", "digits", "--examples", "300")


def nets() -> dict[str, Callable[[], nn.Module]]:
    """Return what makes the networks."""
    found: dict[str, Callable[[], nn.Module]] = {}
    exec(NETS, found)
    return {"mlp": found["mlp"], "cnn": found["cnn"]}


def trained(make: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Return the tensors of a network that was trained for two epochs."""
    data = Data.of("digits").fit.lots[0]
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in torch.randperm(len(data)).repeat(2).split(64):
        loss = nn.functional.cross_entropy(model(data.inputs[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def trained_states() -> dict[str, dict[str, Tensor]]:
    """Two networks of each kind: mlp0, mlp1, cnn0 and cnn1."""
    pytest.importorskip("sklearn")
    return {
        f"{name}{seed}": trained(make, seed) for name, make in nets().items() for seed in range(2)
    }


def write_files(folder: Path, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the checkpoints, and nets.py with what makes the networks."""
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    for name, state in states.items():
        save_checkpoint(folder / f"{name}.safetensors", state)


@pytest.fixture
def trained_folder(
    inside: Path, monkeypatch: pytest.MonkeyPatch, trained_states: dict[str, dict[str, Tensor]]
) -> Path:
    """A folder with checkpoints of the trained states and their models; we are in it."""
    monkeypatch.setenv("COLUMNS", "100")
    write_files(inside, trained_states)
    return inside
