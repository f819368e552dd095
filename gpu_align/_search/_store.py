"""Keeping running searches in a file, from which they can be resumed."""

import hashlib
import os
import pickle
import re
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_align._checkpoint import atomic_write
from gpu_align._device import version
from gpu_align._errors import InputError, bullet_list
from gpu_align._problem import AlignmentProblem, Hypotheses, hash_tensors
from gpu_align._search._plausible import flaw
from gpu_align._search._state import STORED, Snapshot, State

SCHEMA = "gpu-align/search/4"
_ANY_SCHEMA = re.compile(rb"gpu-align/search/\d+")

# What `torch.load(weights_only=True)` raises on files that are damaged or hold other classes.
_DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError, OverflowError),
    *(NotImplementedError, zlib.error),
)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class SearchStore:
    """The file that a running search is kept in: written now and then, and when it is interrupted.

    Of several searches that belong together (see `next`) those that have ended stay in the file
    beside the one that runs.

    A search that is resumed goes on with the same random numbers and ends as if it had never been
    interrupted. Only similarities that a descent has cached are computed anew, which on large
    problems differs from what was updated in rounding.

    Attributes:
        path: of the file. It is replaced in one step, so that it always holds a whole search.
        resume: whether to go on from the file; if not, a file that is there is replaced.
        interval: seconds between two writes, at least.
        share: of the time that writing may take.
    """

    interval = 30.0
    share = 0.05

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        on_failure: Callable[[str], None] = _warn,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say where; nothing is read or written yet.

        Args:
            path: of the file; its folder must exist.
            resume: whether to go on from the file.
            on_failure: is told why the file cannot be written; the search goes on.
            now: returns the time in seconds.
        """
        self.path, self.resume = Path(path), resume
        self._on_failure, self._now = on_failure, now
        self._identify: Callable[[], dict[str, str]] = dict
        self._identity: dict[str, str] = {}
        self._number = 0
        self._searches: dict[int, dict[str, Any]] = {}  # number -> "identity" and "snapshot"
        self._is_written = False
        self._read_last: State | None = None
        self._told: str | None = None
        self._due = 0.0

    @property
    def kept(self) -> bool:
        """Whether the file now holds what the searches have come to."""
        return bool(self._searches) and self._is_written

    def begin(
        self, problem: AlignmentProblem, settings: Mapping[str, object], start: Hypotheses | None
    ) -> Snapshot | None:
        """Begin with a search; return where it goes on.

        Args:
            problem: what is solved.
            settings: what else the result depends on -> its value.
            start: the hypotheses to begin from.

        Returns:
            Where it was interrupted, or has ended; None if it begins anew.

        Raises:
            InputError: it is to be resumed, and the file is missing, damaged, or of another run.
        """
        if self._number == 0:
            self._searches, self._due = {}, self._now() + self.interval
            if self.resume:
                self._searches, self._is_written = self._read(problem.device), True
        self._identify, self._identity = partial(_identity, problem, settings, start), {}
        entry = self._searches.get(self._number)
        if entry is None:
            return None
        self._check_identity(entry.get("identity"))
        snapshot = self._checked(entry.get("snapshot"), problem)
        self._read_last = snapshot.state
        return snapshot

    def next(self) -> None:
        """Make ready for the next of several searches; the present one has ended and is kept."""
        self._sign()
        self._number += 1

    def note(self, snapshot: Snapshot) -> None:
        """Take what is to be kept; it is written if that is due."""
        self._searches[self._number], self._is_written = {"snapshot": snapshot}, False
        if self._now() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what was noted last, unless the file has it."""
        if not self._searches or self.kept:
            return
        began = self._now()
        try:
            self._write()
            self._is_written, self._told = True, None
        except (InputError, RuntimeError, MemoryError) as error:
            message = f"the search goes on, but its state could not be kept: {error}"
            if message != self._told:
                self._told = message
                self._on_failure(message)
        ended = self._now()
        self._due = ended + max(self.interval, (ended - began) / self.share)

    def discard(self) -> None:
        """Remove the file: the searches have ended and their result is in safety."""
        self._searches, self._number = {}, 0
        self.remove()

    def remove(self) -> None:
        """Remove the file before the last of the result is written; `flush` writes it again."""
        self._is_written = False
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            self._on_failure(f"{self.path} is needed no more, but cannot be removed: {error}")

    def _write(self) -> None:
        self._sign()
        document = {"schema": SCHEMA, "searches": self._searches}
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(document, file)
            except RuntimeError as error:
                # torch's zip writer hides the system's error (a full disk, mostly).
                raise OSError(f"torch.save failed ({error})") from error
            file.flush()
            os.fsync(file.fileno())

    def _sign(self) -> None:
        """Write down whose the present search is."""
        entry = self._searches.get(self._number, {"identity": None})
        if "identity" not in entry:
            entry["identity"] = self._own()

    def _own(self) -> dict[str, str]:
        # All weights are read for it, so not before it is needed.
        self._identity = self._identity or self._identify()
        return self._identity

    def _read(self, device: torch.device) -> dict[int, dict[str, Any]]:
        document = self._load(device)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise self.unusable(f"expected a search kept by this release ({SCHEMA})")
        searches = document.get("searches")
        entries = searches if isinstance(searches, dict) else {}
        if not entries or not all(
            type(number) is int and isinstance(entry, dict) for number, entry in entries.items()
        ):
            raise self.unusable("it holds no search")
        return entries

    def _check_identity(self, identity: object) -> None:
        if not isinstance(identity, dict):
            raise self.unusable("it does not say whose search it is")
        different = [
            _difference(name, identity.get(name), value)
            for name, value in self._own().items()
            if identity.get(name) != value
        ]
        if different:
            raise InputError(
                f"cannot resume the search in {self.path}, as it is another one:\n"
                f"{bullet_list(different)}\nrepeat the command as it was and add --resume, or "
                "remove the file to begin anew"
            )

    def _load(self, device: torch.device) -> Any:
        def place(storage: Any, location: str) -> Any:
            # What was on the host stays there.
            on_host = location == "cpu" or device.type == "cpu"
            return storage if on_host else storage.cuda(device.index)

        try:
            with zipfile.ZipFile(self.path) as archive:
                # torch itself does not look at the checksums.
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
                schema = _schema_in(archive)
            if schema not in (None, SCHEMA):
                raise self.unusable(
                    f"it was kept by another release ({schema}; this one reads {SCHEMA})"
                )
            with torch.serialization.safe_globals(list(STORED)):
                return torch.load(self.path, map_location=place, weights_only=True)
        except FileNotFoundError:
            raise InputError(
                f"there is nothing to resume: {self.path} does not exist; leave out --resume to "
                "begin anew, or name the outputs as in the command that was interrupted"
            ) from None
        except InputError:
            raise
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from error
        except _DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise self.unusable(f"it is damaged, or no kept search ({reason})") from error

    def _checked(self, snapshot: object, problem: AlignmentProblem) -> Snapshot:
        """Check what was read as far as it could do harm without an error."""
        try:
            problematic = flaw(snapshot, problem)
        except _DAMAGE as error:
            raise self.unusable(f"it cannot be understood ({type(error).__name__})") from error
        if problematic is not None or not isinstance(snapshot, Snapshot):
            raise self.unusable(problematic or "it is not complete")
        return snapshot

    def is_unproved(self, state: State) -> bool:
        """Say whether a state was read from the file, so that no step has been done with it."""
        return self._read_last is state

    def unusable(self, reason: str) -> InputError:
        """Return the error that the file cannot be resumed from."""
        return InputError(
            f"cannot resume the search in {self.path}: {reason}; remove the file and leave out "
            "--resume to begin anew"
        )


def _schema_in(archive: zipfile.ZipFile) -> str | None:
    """Return the schema that a file names, without loading anything from it."""
    for name in archive.namelist():
        if name.endswith("data.pkl") and (match := _ANY_SCHEMA.search(archive.read(name))):
            return match[0].decode("ascii")
    return None


def _identity(
    problem: AlignmentProblem, settings: Mapping[str, object], start: Hypotheses | None
) -> dict[str, str]:
    """Return all that the result depends on, apart from budgets: name -> value or hash."""
    engine, spec = problem.engine, replace(problem.spec, origin="")
    given = [problem.evidence, {} if start is None else start.perms]
    return {
        "the version of gpu-align": str(version("gpu-align")),
        **{name: str(value) for name, value in settings.items()},
        "the metric": problem.metric.name,
        "the precision": str(problem.dtype),
        "the device": f"{engine.device.type}{' with kernels' if engine.kernels else ''}",
        "the symmetries": _HASH + hashlib.sha256(spec.to_json().encode()).hexdigest(),
        **{name: _HASH + digest for name, digest in problem.digests().items()},
        "the evidence or the start": _HASH + hash_tensors(given),
    }


_HASH = "sha256:"


def _difference(name: str, before: object, now: str) -> str:
    if not isinstance(before, str) or now.startswith(_HASH):
        return f"{name}: not the same"
    if len(before) + len(now) < 100:
        return f"{name}: it was {before}, now it is {now}"
    kind, now_kind = before.partition("(")[0], now.partition("(")[0]
    if kind != now_kind:
        return f"{name}: it was {kind}, now it is {now_kind}"
    return f"{name}: its settings (--width, --starts, and whether --seconds is given, decide them)"
