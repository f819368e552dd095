# %% [markdown]
# # Merging with data
#
# The order with the lowest distance need not be the best merge, and the mean is not the end of it. Needs
# `pip install '.[demo]'` from a clone; a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from gpu_align import barrier, merge, repair

FAST = os.environ.get("GPU_ALIGN_FAST") == "1"  # a test runs this page so
EPOCHS, WIDTH = (2, 12) if FAST else (40, 24)

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def fresh() -> torch.nn.Module:
    layers = (
        torch.nn.Linear(64, WIDTH),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.ReLU(),
    )
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10))


def trained(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for part in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval()


def score(state: dict) -> tuple[float, float]:
    """Return loss and accuracy on the test images."""
    model = fresh().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        outputs = model(test[0])
    loss = torch.nn.functional.cross_entropy(outputs, test[1])
    return round(float(loss), 3), round(float((outputs.argmax(1) == test[1]).float().mean()), 3)


a, b = trained(1), trained(2)
print("networks:", score(a.state_dict()), score(b.state_dict()))

# %% [markdown]
# The plain mean, and the mean of networks in one order:

# %%
naive = merge([a, b], method="naive", example_inputs=images[:2])
aligned = merge([a, b], method="average", example_inputs=images[:2])
print("plain mean:", score(dict(naive.state_dict)), "aligned:", score(dict(aligned.state_dict)))

# %% [markdown]
# The aligned mean has lost something: the mean of two units deviates less than either. `repair` gives each unit the
# mean and the deviation of its parents, on data, labels not needed:

# %%
merged = fresh().eval()
merged.load_state_dict(dict(aligned.state_dict))
in_order = fresh().eval()
in_order.load_state_dict(dict(aligned.permutations[1].apply(b.state_dict())))
repaired = repair(merged, train, parents=[a, in_order])
print("repaired:", score(dict(repaired.state_dict)))

# %% [markdown]
# With data `merge` tries orders by weights and by activations, repairs, fits every layer by least squares, and keeps
# what is best on a part that is held back:

# %%
best = merge([a, b], train)
print(best.summary())
print("merge:", score(dict(best.state_dict)))

# %%
tried = [trial for trial in best.trials if trial.loss is not None]
figure, axes = plt.subplots(figsize=(7, 0.3 * len(tried) + 1))
axes.barh([f"{trial.order}, {trial.method}" for trial in tried], [trial.loss for trial in tried])
axes.set(xlabel="loss on held-back data")
axes.invert_yaxis()

# %% [markdown]
# The barrier says how much of the loss is a matter of order, and what else stands in the way:

# %%
measured = barrier(a, b, train, points=11)
print(f"barrier {measured.barrier_before:.2f} -> {measured.barrier:.2f}")
for sentence in measured.findings:
    print("-", sentence)
