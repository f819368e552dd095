"""Permutations in files: safetensors with an index vector per group, and the spec beside them."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint import atomic_write, read_safetensors
from gpu_align._errors import CheckpointError

_SPEC_KEY = "gpu_align_spec"
_COUNT_KEY = "gpu_align_count"  # of a stack
_SIGNS = "signs^"  # no group's name has this character

Vectors = Mapping[str, Tensor]


def write_vectors(
    path: str | os.PathLike[str],
    perms: Vectors,
    signs: Vectors,
    spec_text: str,
    count: int | None = None,
) -> None:
    """Write index vectors and signs by group, and the spec as text; `count` of a stack of vectors.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {name: perm.contiguous() for name, perm in perms.items()}
    tensors |= {_SIGNS + name: sign.contiguous() for name, sign in signs.items()}
    metadata = {_SPEC_KEY: spec_text} | ({} if count is None else {_COUNT_KEY: str(count)})
    with atomic_write(path, CheckpointError) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise CheckpointError(
                f"cannot write {os.fspath(path)}: {error}; check free space, or choose another path"
            ) from error


def read_vectors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor], str, int | None]:
    """Read what `write_vectors` wrote: index vectors, signs, the text of the spec, and the count.

    Raises:
        CheckpointError: the file cannot be read or holds no permutation.
    """
    try:
        held, metadata = read_safetensors(Path(path))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"cannot read {os.fspath(path)!r} as a permutation file: {error}; expected a file "
            "written by `gpu-align align --permutation` or Permutation.save"
        ) from error
    spec = (metadata or {}).get(_SPEC_KEY)
    if spec is None:
        raise CheckpointError(
            f"{os.fspath(path)!r} is a safetensors file without a permutation; expected one "
            "written by `gpu-align align --permutation` or Permutation.save"
        )
    signs = {n.removeprefix(_SIGNS): t for n, t in held.items() if n.startswith(_SIGNS)}
    perms = {name: tensor for name, tensor in held.items() if not name.startswith(_SIGNS)}
    count = (metadata or {}).get(_COUNT_KEY)
    if count is not None and not (count.isascii() and count.isdecimal() and len(count) < 10):
        raise CheckpointError(f"{os.fspath(path)!r} is a damaged stack of permutations")
    return perms, signs, spec, None if count is None else int(count)
