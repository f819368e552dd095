"""The open benchmark of alignment.

    python -m bench.instances list
    python -m bench.instances check FILE [--instance NAME]
    python -m bench.instances check --all

FILE is a permutation, as `gpu-align align ... --permutation FILE` writes it: a safetensors file
with an index vector for each group. Its name begins with the instance's, as in
mlp_16-yours.safetensors.
Needs NumPy and safetensors only.
"""

import argparse
import sys
from pathlib import Path

from bench.instances.instance import BEST, Instance, Refused, names, records

_ROUNDING = 1e-6
"""Relative difference of values that counts as none: searches sum in float32."""


def check(path: Path, name: str | None) -> str:
    """Return what a permutation is worth, in words.

    Raises:
        Refused: it is no permutation of the instance.
    """
    named = [each for each in names() if path.name.startswith((f"{each}-", f"{each}."))]
    chosen = name or max(named, key=len, default="")
    if not chosen:
        raise Refused(f"{path.name}: its name begins with none of the instances; add --instance")
    instance = Instance.load(chosen)
    value, known = instance.value(instance.read(path)), records()["instances"][chosen]
    best, bound = known["best"]["value"], known["bound"]["value"]
    verdict = "better than the best known"
    if value >= best * (1 - _ROUNDING):
        is_equal = value <= best * (1 + _ROUNDING)
        verdict = "the best known" if is_equal else f"{value / best - 1:.3%} above the best known"
    return f"{chosen}: {value:.6f} ({verdict}, {best:.6f}; lower bound {bound:.6f})"


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser("python -m bench.instances", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="Names, best known values and bounds.")
    checking = commands.add_parser("check", help="Evaluate permutations.")
    checking.add_argument("files", metavar="FILE", nargs="*", type=Path)
    checking.add_argument("--instance", metavar="NAME", help="The instance, if FILE does not say.")
    checking.add_argument("--all", action="store_true", help="The best known of all instances.")
    given = parser.parse_args()
    if given.command == "list":
        for name, known in records()["instances"].items():
            proved = "optimal" if known["bound"]["proved"] else ""
            best, bound = known["best"]["value"], known["bound"]["value"]
            print(f"{name:20} {best:14.6f} {bound:14.6f} {proved}")
        return 0
    files = sorted(BEST.glob("*.safetensors")) if given.all else given.files
    if not files:
        checking.error("expected a FILE, or --all")
    try:
        for path in files:
            print(check(path, given.instance))
    except (Refused, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
