"""Zoos for tests: few, small, with answers that are known."""

import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from gpu_align import Permutation, chain_spec, save_checkpoint

State = dict[str, Tensor]


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def state(seed: int, *widths: int) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: t.detach() for name, t in mlp(*widths).state_dict().items()}


def planted(count: int, reference: State, noise: float = 0.01) -> tuple[list[State], list[State]]:
    """Return networks near a reference, and the same with their units in a random order."""
    spec = chain_spec(reference)
    generator = torch.Generator().manual_seed(7)
    near = [
        {n: t + noise * torch.randn(t.shape, generator=generator) for n, t in reference.items()}
        for _ in range(count)
    ]
    moved = [Permutation.random(spec, seed=number).apply(one) for number, one in enumerate(near)]
    return near, moved


def write_folder(folder: Path, states: list[State], suffix: str = ".safetensors") -> Path:
    folder.mkdir(parents=True)
    for number, one in enumerate(states):
        save_checkpoint(folder / f"net{number:03d}{suffix}", one)
    return folder


def stack(states: list[State]) -> State:
    return {name: torch.stack([one[name] for one in states]) for name in states[0]}


def write_trial(folder: Path, states: list[State], rate: float) -> None:
    """Write a trial as Ray Tune leaves it: parameters, reports, a folder for each checkpoint."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"lr": rate}), encoding="utf-8")
    reports = []
    for number, one in enumerate(states):
        name = f"checkpoint_{number:06d}"
        (folder / name).mkdir()
        torch.save({"model_state_dict": one, "epoch": number}, folder / name / "checkpoint.pt")
        reports.append(json.dumps({"loss": 1.0 / (1 + number), "checkpoint_dir_name": name}))
    (folder / "result.json").write_text("\n".join(reports) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file that must not depend on how the work went."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "summary.json"
    }
