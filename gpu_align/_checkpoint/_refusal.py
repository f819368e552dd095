"""Errors about files that cannot be read, and the checks that come before any reader."""

from pathlib import Path

from gpu_align._errors import CheckpointError


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
    text = ", ".join(f'"{name}"' for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


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
