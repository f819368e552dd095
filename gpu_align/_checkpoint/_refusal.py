"""Errors about files that cannot be read, and the checks that come before any reader."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpu_align._errors import CheckpointError, folded


def unreadable(path: Path, problem: str, remedy: str) -> CheckpointError:
    """Build the error for a checkpoint that cannot be read.

    Args:
        path: the file or folder.
        problem: expected and got.
        remedy: what to do.
    """
    return CheckpointError(f"cannot read {path}: {problem}; {remedy}")


def quoted(names: list[str], limit: int = 20) -> str:
    """Join names for a message, and count those beyond `limit`."""
    return folded([f'"{name}"' for name in names], limit)


def leading_bytes(path: Path, expected: str) -> bytes:
    """Return the first bytes of a file, enough to tell its kind.

    Args:
        path: an existing file.
        expected: the kind of file that its name promises.

    Raises:
        CheckpointError: the file is empty or stands for a file that was not downloaded.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise unreadable(path, f"expected {expected}, the file is empty", "copy it again")
    if start.startswith(b"version https://git-lfs"):
        raise unreadable(
            path, f"expected {expected}, got a Git LFS pointer", "run `git lfs pull` first"
        )
    return start


@contextmanager
def opened_once(path: Path) -> Iterator[BinaryIO]:
    """Open a file whose content the body reads into memory, never to be looked at again.

    So what is written into the file later changes nothing.

    Args:
        path: an existing file.

    Raises:
        CheckpointError: the file was written to meanwhile.
    """
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise unreadable(
            path, "it was written to while it was read", "repeat this when the file is finished"
        )
