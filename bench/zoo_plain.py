"""What zoos are aligned with today: a process for each model, a specification and a loop by hand.

python -m bench.zoo_plain SOURCE NUMBER TARGET OUT

Aligns one SIREN of a stack by weight matching and writes it; prints the seconds of the loop alone.
"""

import sys
import time

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.optimize import linear_sum_assignment

Tensors = dict[str, np.ndarray]
SWEEPS = 100


def match(source: Tensors, target: Tensors, layers: int) -> Tensors:
    """Return the source with its units reordered; Git Re-Basin's algorithm 1, signs left out.

    Args:
        source, target: "0.weight", "0.bias" and so on.
        layers: how many.
    """
    perms = [np.arange(len(source[f"{layer}.bias"])) for layer in range(layers - 1)]
    rng, moved = np.random.default_rng(0), True
    for _ in range(SWEEPS):
        if not moved:
            break
        moved = False
        for layer in rng.permutation(layers - 1):
            weight = source[f"{layer}.weight"]
            weight = weight if layer == 0 else weight[:, perms[layer - 1]]
            gain = target[f"{layer}.weight"] @ weight.T
            gain += np.outer(target[f"{layer}.bias"], source[f"{layer}.bias"])
            after = source[f"{layer + 1}.weight"]
            after = after if layer == layers - 2 else after[perms[layer + 1]]
            gain += target[f"{layer + 1}.weight"].T @ after
            old = gain[np.arange(len(gain)), perms[layer]].sum()
            rows, columns = linear_sum_assignment(gain, maximize=True)
            if gain[rows, columns].sum() > old + 1e-6:
                perms[layer], moved = columns, True
    result = dict(source)
    for layer, perm in enumerate(perms):
        result[f"{layer}.weight"] = result[f"{layer}.weight"][perm]
        result[f"{layer}.bias"] = result[f"{layer}.bias"][perm]
        result[f"{layer + 1}.weight"] = result[f"{layer + 1}.weight"][:, perm]
    return result


def main() -> None:
    path, number, target_path, out = sys.argv[1:]
    with safe_open(path, "np") as file:
        source = {name: file.get_slice(name)[int(number)] for name in file.keys()}  # noqa: SIM118
    target = load_file(target_path)
    begun = time.process_time()
    found = match(source, target, len(source) // 2)
    print(time.process_time() - begun)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in found.items()}, out)


if __name__ == "__main__":
    main()
