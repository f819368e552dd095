"""Train the networks of the instances.

    python -m bench.instances.make [NAME ...]

Each architecture is trained twice, from two seeds, on scikit-learn's digits or on text of the
standard library; minutes on one core. A planted source is the target with noise, its units in
random order and with random signs.
"""

import pydoc_data.topics
import sys

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from bench.instances.architectures import LETTERS, NETWORKS
from bench.instances.instance import NETWORKS as FOLDER
from gpu_align import Permutation, discover
from gpu_align._network import load_digits

STEPS, BATCH, RATE = 600, 64, 2e-3
IMAGE = 7
"""The digit that networks of places show."""
NOISE = 0.5
"""Of a planted source, in standard deviations of each tensor."""


def characters() -> Tensor:
    """Return the manual's text on topics as numbers of characters, the rare ones left out."""
    text = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    text = text[:200_000].lower()
    common = sorted(sorted(set(text)), key=text.count)[-LETTERS:]
    numbers = {letter: number for number, letter in enumerate(sorted(common))}
    return torch.tensor([numbers[letter] for letter in text if letter in numbers])


def loss(model: nn.Module, name: str, data: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of one batch, drawn from torch's generator."""
    inputs, targets = data
    if name in ("siren", "inr"):
        return mse_loss(model(inputs), targets)
    if inputs.dim() == 1:
        starts = torch.randint(len(inputs) - 33, (BATCH,))
        windows = torch.stack([inputs[start : start + 33] for start in starts.tolist()])
        return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    chosen = torch.randint(len(inputs), (BATCH,))
    return cross_entropy(model(inputs[chosen]), targets[chosen])


def examples(name: str) -> tuple[Tensor, Tensor]:
    """Return what a network is trained on."""
    if name in ("lstm", "gru", "gpt"):
        return characters(), torch.empty(0)
    digits = load_digits()
    if name in ("siren", "inr"):
        places = torch.linspace(-1, 1, 8)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
        return grid, digits.train_images[IMAGE].reshape(-1, 1)
    return digits.train_images, digits.train_labels


def trained(name: str, seed: int) -> nn.Module:
    """Return a network trained by Adam from a seed."""
    torch.manual_seed(seed)
    model, data = NETWORKS[name][1](), examples(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, name, data).backward()
        optimizer.step()
    return model.eval()


def planted(target: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return the target with noise, reordered."""
    generator = torch.Generator().manual_seed(1)
    noisy = {
        name: tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in target.state_dict().items()
    }
    spec = discover(target, inputs)
    return dict(Permutation.random(spec, generator=generator).apply(noisy))


def make(name: str) -> None:
    """Write the pair of an instance and its spec."""
    _, _, inputs = NETWORKS[name]
    target = trained(name, seed=1)
    if name.startswith("planted"):
        source = planted(target, inputs())
    else:
        source = trained(name, seed=2).state_dict()
    FOLDER.mkdir(exist_ok=True)
    for state, end in ((target.state_dict(), "a"), (source, "b")):
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, FOLDER / f"{name}_{end}.safetensors")
    spec = discover(target, inputs())
    (FOLDER / f"{name}.json").write_text(f"{spec.to_json()}\n", encoding="utf-8")
    print(f"{name}: {float(loss(target, name, examples(name))):.3f}", dict(spec.groups).keys())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or NETWORKS:
        make(chosen)
