"""Permutations in files: safetensors with an index vector per group, and the spec beside them."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpu_align._checkpoint import TensorLayout, atomic_write, read_safetensors, write_in_parts
from gpu_align._errors import CheckpointError
from gpu_align._symmetry._spec import PermutationSpec

_SPEC_KEY = "gpu_align_spec"
_COUNT_KEY = "gpu_align_count"  # of a stack
_KINDS = ("", "signs^", "phases^")  # no group's name has this character

Vectors = Mapping[str, Tensor]


def write_vectors(
    path: str | os.PathLike[str],
    vectors: tuple[Vectors, Vectors, Vectors],
    spec_text: str,
    count: int | None = None,
) -> None:
    """Write index vectors, signs and phases by group, and the spec as text; `count` of a stack.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {
        kind + name: vector.contiguous()
        for kind, named in zip(_KINDS, vectors, strict=True)
        for name, vector in named.items()
    }
    metadata = {_SPEC_KEY: spec_text} | ({} if count is None else {_COUNT_KEY: str(count)})
    with atomic_write(path, CheckpointError) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise CheckpointError(
                f"cannot write {os.fspath(path)}: {error}; check free space, or choose another path"
            ) from error


def save_stack(
    path: str | os.PathLike[str], spec: PermutationSpec, perms: Vectors, signs: Vectors, count: int
) -> None:
    """Write a stack of permutations, which `Permutation.load_each` reads.

    Args:
        path: the file.
        spec: whose groups are permuted.
        perms, signs: group -> int64 [count, units].
        count: how many there are.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {**perms, **{_KINDS[1] + name: sign for name, sign in signs.items()}}
    layouts = {n: TensorLayout(tensor.dtype, tuple(tensor.shape)) for n, tensor in tensors.items()}
    # The library writes entries of the metadata in any order; here equal stacks have equal bytes.
    metadata = {_COUNT_KEY: str(count), _SPEC_KEY: spec.to_json()}
    write_in_parts(Path(path), layouts, metadata, lambda name: [tensors[name]])


def read_vectors(
    path: str | os.PathLike[str],
) -> tuple[tuple[Vectors, Vectors, Vectors], str, int | None]:
    """Read what `write_vectors` wrote: the vectors, the text of the spec, and the count.

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
    vectors: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for name, tensor in held.items():
        number = max(n for n, kind in enumerate(_KINDS) if name.startswith(kind))
        vectors[number][name.removeprefix(_KINDS[number])] = tensor
    count = (metadata or {}).get(_COUNT_KEY)
    if count is not None and not (count.isascii() and count.isdecimal() and len(count) < 10):
        raise CheckpointError(f"{os.fspath(path)!r} is a damaged stack of permutations")
    perms, signs, phases = vectors
    return (perms, signs, phases), spec, None if count is None else int(count)
