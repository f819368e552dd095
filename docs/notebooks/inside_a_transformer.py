# %% [markdown]
# # Inside a transformer's symmetries
#
# Heads move as wholes, and inside each head the dimensions that queries and keys share, and those that values carry.
# All of it is found by tracing. Half a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import torch

from gpu_align import Permutation, align, discover

FAST = os.environ.get("GPU_ALIGN_FAST") == "1"  # a test runs this page so
WIDTH, HEADS, LAYERS = (12, 3, 1) if FAST else (48, 4, 2)

# %%
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(
    WIDTH, HEADS, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
)
model = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
inputs = torch.randn(2, 7, WIDTH)
model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), model, torch.nn.Linear(WIDTH, 5)).eval()
for parameter in model.parameters():  # two layers begin as copies: make all units differ
    torch.nn.init.normal_(parameter, std=0.2)
spec = discover(model, inputs)
for name, group in spec.groups.items():
    inside = f", inside each of {group.parent}" if group.parent else ""
    print(f"{name}: {group.size} units{inside}{', with signs' if group.signed else ''}")

# %% [markdown]
# One group is the residual stream: the sums tie all layers to it. The heads of each layer are a group, and two more
# lie inside each head. There are so many orders and signs:

# %%
print(f"10^{spec.log10_symmetries:.1f}")

# %% [markdown]
# None of them changes the function:

# %%
shuffled = Permutation.random(spec, seed=1)
before = model(inputs)
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
moved = shuffled.apply(state)
model.load_state_dict(moved)
print("largest difference of the outputs:", (model(inputs) - before).abs().max().item())
print(
    "largest difference of the weights:",
    max(float((moved[n] - state[n]).abs().max()) for n in state),
)
model.load_state_dict(state)

# %% [markdown]
# What stays fixed, and why:

# %%
for pin in spec.pins:
    print(pin)

# %% [markdown]
# Can the order be found again, under noise of half a standard deviation? The planted answer is known.

# %%
generator = torch.Generator().manual_seed(2)
noisy = {
    name: tensor + 0.5 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    for name, tensor in moved.items()
}
planted = sum(float((noisy[name] - moved[name]).square().sum()) for name in moved)
result = align(noisy, state, spec=spec)
print(f"found {result.distance:.3f}, planted {planted:.3f}, unaligned {result.distance_before:.3f}")

# %% [markdown]
# The heads of the first layer, and one head from the inside:

# %%
parent = next(group.parent for group in spec.groups.values() if group.parent)
children = [name for name, group in spec.groups.items() if group.parent == parent]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
for place, name, title in (
    (axes[0], parent, "heads"),
    (axes[1], children[0], "dimensions of all heads"),
):
    units = spec.units(name)
    matrix = torch.zeros(units, units)
    matrix[torch.arange(units), result.permutation[name]] = 1
    place.imshow(matrix, cmap="Greys")
    place.set(title=title, xlabel="unit of the source", ylabel="place")
