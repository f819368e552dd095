# %% [markdown]
# # A first alignment
#
# Two classifiers of digits, trained from two seeds, are brought into one order. Needs
# `pip install '.[demo]'` from a clone; a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from gpu_align import activation_evidence, align, barrier, discover

FAST = os.environ.get("GPU_ALIGN_FAST") == "1"  # a test runs this page so
EPOCHS, WIDTH = (2, 16) if FAST else (40, 48)

# %% [markdown]
# Train them:

# %%
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def trained(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = (
        torch.nn.Linear(64, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.ReLU(),
    )
    model = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for part in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()


a, b = trained(1), trained(2)
print([float((model(test[0]).argmax(1) == test[1]).float().mean()) for model in (a, b)])

# %% [markdown]
# What may be reordered is found by tracing: two groups, the units of the hidden layers. There are so many orders
# of them, which all compute the same:

# %%
spec = discover(b, images[:2])
print({group: spec.units(group) for group in spec.groups}, f"10^{spec.log10_symmetries:.0f} orders")

# %% [markdown]
# One of them is closest to `a`:

# %%
result = align(b, a, example_inputs=images[:2])
print(result.summary())

# %% [markdown]
# `perm[i] = j` puts unit `j` of the source at place `i`. Nothing else happens: the function is the same.

# %%
print(result.permutation["0"])
aligned = trained(2)
aligned.load_state_dict(result.state_dict)
print((aligned(images) - b(images)).abs().max().item())

# %% [markdown]
# How the units of the first layer correlate on the digits, before and after: alignment looked at weights alone, and
# yet paired units that do the same.

# %%
alike = activation_evidence(a, b, spec, train, model=a)["0"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for place, order, title in (
    (axes[0], torch.arange(WIDTH), "as trained"),
    (axes[1], result.permutation["0"], "aligned"),
):
    place.imshow(alike[:, order], cmap="RdBu", vmin=-1, vmax=1)
    place.set(title=title, xlabel="units of B", ylabel="units of A")

# %% [markdown]
# And the loss on the way from one network to the other:

# %%
measured = barrier(a, b, train, align=result, points=11)
figure, axes = plt.subplots(figsize=(6, 3.2))
for is_aligned, name in ((False, "as trained"), (True, "aligned")):
    curve = measured.curve(aligned=is_aligned)
    axes.plot(curve.points, curve.losses, label=name)
axes.set(xlabel="from A (0) to B (1)", ylabel="loss")
axes.legend()
print(f"barrier {measured.barrier_before:.2f} -> {measured.barrier:.2f}")

# %% [markdown]
# Next: [merging with data](merging_with_data.ipynb).
