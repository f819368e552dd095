"""Every error that gpu-align raises on purpose.

A message says what was expected, what came and what to do. ``InputError`` and its children are
the caller's to mend (exit code 2); any other ``GpuAlignError`` is a failure of the work itself
(exit code 1).
"""

from collections.abc import Sequence

from gpu_align._status import Status


class GpuAlignError(Exception):
    """Base of all errors raised by gpu-align."""


class AssignmentError(GpuAlignError):
    """An assignment problem could not be solved.

    Attributes:
        status: of the first problem that failed.
    """

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status


class InputError(GpuAlignError, ValueError):
    """The arguments cannot be used as they are."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, written or used."""


class SpecError(InputError):
    """A permutation spec does not fit the tensors it is used with."""


class ModelError(InputError):
    """A model cannot be loaded, run or traced."""


class UnavailableError(InputError):
    """An explicitly chosen device, solver or library is not there."""


def folded(names: Sequence[str], limit: int) -> str:
    """Join names, and count those beyond `limit`."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def bullet_list(problems: list[str], limit: int = 20) -> str:
    """Format problems one per line, and count those beyond `limit`."""
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  - ... and {len(problems) - limit} more")
    return "\n".join(lines)
