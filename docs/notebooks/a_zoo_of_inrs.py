# %% [markdown]
# # A zoo of INRs
#
# Networks whose weights show images: each fits one digit as a function of the place. Needs `pip install '.[demo]'`
# from a clone; a minute on two cores.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from gpu_align import CoordinateDescent, align, barycentre, discover
from gpu_align.learn import SirenRecipe, make_zoo

FAST = os.environ.get("GPU_ALIGN_FAST") == "1"  # a test runs this page so
COUNT, STEPS = (6, 10) if FAST else (60, 400)

# %% [markdown]
# Hundreds are trained together, and kept in a folder; called again after an interruption, it goes on:

# %%
digits = load_digits()
images = torch.tensor(digits.images[:COUNT], dtype=torch.float32) / 16
recipe = SirenRecipe(steps=STEPS, rate=2e-3)
folder = tempfile.mkdtemp()
zoo = make_zoo(folder, recipe, images, torch.tensor(digits.target[:COUNT]))
print(len(zoo), {name: tuple(tensor.shape) for name, tensor in zoo.states.items()})

# %% [markdown]
# Sine networks may be reordered, and their units negated: sin(-x) = -sin(x).

# %%
states = [
    {name: tensor[number] for name, tensor in zoo.states.items()} for number in range(len(zoo))
]
model = recipe.model()
spec = discover(model, torch.randn(2, 2))
print({name: (group.size, group.signed) for name, group in spec.groups.items()})

# %% [markdown]
# Align all of them to the first, in one call:

# %%
results = align(states[1:], states[0], spec=spec, search=CoordinateDescent())
before = [result.distance_before for result in results]
after = [result.distance for result in results]
figure, axes = plt.subplots(figsize=(6, 3))
axes.hist([before, after], bins=20, label=["as trained", "aligned to the first"])
axes.set(xlabel="squared distance to the first", ylabel="networks")
axes.legend()
print(f"mean {sum(before) / len(before):.2f} -> {sum(after) / len(after):.2f}")

# %% [markdown]
# Why the first? A barycentre prefers none: align to the mean, take the mean anew, and so on.

# %%
centre = barycentre(states, spec=spec, search=CoordinateDescent())
print("mean squared distance to the mean:", [round(spread, 2) for spread in centre.spreads])

# %% [markdown]
# The mean network, as an image: as trained it shows nothing, once aligned something like the mean digit.

# %%
places = torch.linspace(-1, 1, 8)
grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
shown = (
    ("one network", states[0]),
    ("mean as trained", {n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]}),
    ("barycentre", centre.mean),
)
for place, (title, state) in zip(axes, shown, strict=True):
    model.load_state_dict(state)
    with torch.no_grad():
        place.imshow(model(grid).reshape(8, 8), cmap="Greys")
    place.set(title=title, xticks=[], yticks=[])
