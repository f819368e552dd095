"""The file that a training is kept in, and from which it is resumed."""

import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu_align._checkpoint import atomic_write
from gpu_align._errors import CheckpointError
from gpu_align._interrupt import uninterrupted

_FORMAT = "gpu-align/training/1"

# What `torch.load(weights_only=True)` and `load_state_dict` raise on other or damaged files.
_DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, LookupError, ValueError),
    *(TypeError, AttributeError, AssertionError),
)


class TrainingFile:
    """Where a training is kept: written after an epoch now and then, and when it is interrupted.

    The file is replaced in one step, so that it always holds a whole training; nothing in it is
    run when it is read.

    Attributes:
        path: of the file; its folder must exist.
        resume: whether to go on from the file, if it is there.
        interval: seconds between two writes, at least.
    """

    interval = 30.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say where; nothing is read or written yet.

        Args:
            path: of the file.
            resume: whether to go on from it; if not, a file that is there is refused.
            now: returns the time in seconds.
        """
        self.path, self.resume, self._now = Path(path), resume, now
        self._settings: dict[str, str] = {}
        self._due = 0.0

    def begin(self, settings: Mapping[str, str]) -> dict[str, Any] | None:
        """Begin a training; return what was kept of it, None if there is nothing.

        Args:
            settings: what it depends on -> its value.

        Raises:
            CheckpointError: there is a file that is not to be resumed, or cannot be.
        """
        self._settings = dict(settings)
        self._due = self._now() + self.interval
        if not self.path.exists():
            return None
        if not self.resume:
            raise CheckpointError(
                f"{self.path} keeps a training that was begun; resume it, or remove the file to "
                "begin anew"
            )
        with self.reading():
            with zipfile.ZipFile(self.path) as archive:
                if damaged := archive.testzip():  # torch does not look at the checksums
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            document = torch.load(self.path, map_location="cpu", weights_only=True)
            found, kept = document["settings"], document["training"]
            is_ours = document["format"] == _FORMAT
        if not is_ours:
            raise self._unusable(f"expected the format {_FORMAT}")
        unlike = [n for n in {**found, **settings} if found.get(n) != settings.get(n)]
        if unlike:
            changes = (
                f"{n}: {found.get(n, 'none')}, now {settings.get(n, 'none')}" for n in unlike
            )
            raise self._unusable(f"it is of another training ({'; '.join(changes)})")
        return dict(kept)

    def note(self, kept: Mapping[str, Any]) -> None:
        """Write what a training has come to if that is due.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if self._now() >= self._due:
            self.write(kept)

    def write(self, kept: Mapping[str, Any]) -> None:
        """Write what a training has come to; a signal waits until it is written.

        Raises:
            CheckpointError: the file cannot be written.
        """
        document = {"format": _FORMAT, "settings": self._settings, "training": dict(kept)}
        with (
            uninterrupted(),
            atomic_write(self.path, CheckpointError) as temporary,
            open(temporary, "wb") as file,  # of a path torch would store the name
        ):
            try:
                torch.save(document, file)
            except RuntimeError as failure:
                # torch's zip writer hides the system's error, a full disk mostly.
                raise OSError(f"torch.save failed ({failure})") from failure
        self._due = self._now() + self.interval

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make errors of the body errors of the file.

        Raises:
            CheckpointError: the body fails as on a file that is damaged, or of something else.
        """
        try:
            yield
        except OSError as failure:
            raise self._unusable(failure.strerror or str(failure)) from failure
        except _DAMAGE as failure:
            reason = (str(failure) or type(failure).__name__).splitlines()[0]
            raise self._unusable(f"it is damaged, or of something else ({reason})") from failure

    def _unusable(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"cannot resume the training in {self.path}: {reason}; remove the file to begin anew"
        )
