# %% [markdown]
# # Searches compared
#
# The same problem, seven searches: what they reach, and how fast. Half a minute on two cores.

# %%
import os
import time

import matplotlib.pyplot as plt
import torch

from gpu_align import (
    Annealing,
    BeamDescent,
    CoordinateDescent,
    FrankWolfe,
    LayerwiseBeam,
    Permutation,
    Recombination,
    align,
    discover,
)

FAST = os.environ.get("GPU_ALIGN_FAST") == "1"  # a test runs this page so
WIDTH, NOISE = (12, 3.0) if FAST else (48, 3.0)

# %% [markdown]
# A network, and a shuffled copy with much noise, so that greedy choices go wrong:

# %%
torch.manual_seed(0)
layers = (
    torch.nn.Linear(64, WIDTH),
    torch.nn.ReLU(),
    torch.nn.Linear(WIDTH, WIDTH),
    torch.nn.ReLU(),
)
target = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10))
spec = discover(target, torch.randn(2, 64))
noisy = {
    name: tensor + NOISE * tensor.std() * torch.randn_like(tensor)
    for name, tensor in target.state_dict().items()
}
planted = sum(float((noisy[n] - t).square().sum()) for n, t in target.state_dict().items())
source = Permutation.random(spec, seed=1).apply(noisy)

# %%
searches = {
    "weight matching": CoordinateDescent(),
    "20 starts of it": CoordinateDescent(20, initial="random"),
    "Frank-Wolfe": FrankWolfe(),
    "layer-wise beam": LayerwiseBeam(10, lookahead=True),
    "annealing": Annealing(),
    "recombination": Recombination(),
    "beam": BeamDescent(),
}
found, curves = {}, {}
for name, search in searches.items():
    events, started = [], time.perf_counter()

    def tell(progress: object, events: list = events, started: float = started) -> None:
        events.append((time.perf_counter() - started, progress.best_distance))

    found[name] = align(source, target.state_dict(), spec=spec, search=search, progress=tell)
    curves[name] = events
    print(f"{name:18} {found[name].distance:10.3f} after {events[-1][0]:6.2f} s")
print(f"{'planted':18} {planted:10.3f}")
print(f"{'lower bound':18} {max(result.lower_bound for result in found.values()):10.3f}")

# %%
best = min(result.distance for result in found.values())
figure, axes = plt.subplots(figsize=(7, 4))
for name, events in curves.items():
    axes.step(*zip(*events, strict=True), where="post", label=name)
axes.axhline(planted, color="grey", linestyle=":", label="planted")
axes.set(xscale="log", xlabel="seconds", ylabel="squared distance", ylim=(0.99 * best, 1.1 * best))
axes.legend()

# %% [markdown]
# Every one of them ends with gaps of 0: no single group can be improved. So a gap of 0 does not tell a good answer
# from a bad one.

# %%
for name, result in found.items():
    print(f"{name:18} largest gap {max(group.gap for group in result.groups):.2g}")

# %% [markdown]
# A proof can. Here as far as it comes in some seconds:

# %%
proof = align(
    source, target.state_dict(), spec=spec, search=Annealing(), prove=2 if FAST else 20
).proof
print(proof.status, proof.distance, ">=", proof.lower_bound, "by", proof.method)
