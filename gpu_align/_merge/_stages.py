"""Stages of a merge that are done, kept in a file from which the merge can be resumed."""

import os
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gpu_align._checkpoint import atomic_write
from gpu_align._device import version
from gpu_align._errors import InputError, bullet_list
from gpu_align._network import Examples
from gpu_align._problem import hash_tensors
from gpu_align._search import SearchStore
from gpu_align._symmetry import StateDict

SCHEMA = "gpu-align/merge-stages/1"

_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, KeyError)
"""What `torch.load(weights_only=True)` raises on files that are damaged or hold other classes."""


class StageStore:
    """Keeps the stages of a merge; one that is resumed ends as if it had not been interrupted.

    The search of an alignment that is running is kept beside them, see `SearchStore`.

    Attributes:
        path: of the file. It is replaced in one step.
        resume: whether to go on from the file.
        interval: seconds between two writes, at least.
    """

    interval = 30.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        on_failure: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say where; nothing is read or written yet.

        Args:
            path: of the file; its folder must exist.
            resume: whether to go on from the file.
            on_failure: is told why the file cannot be written; the merge goes on.
            now: returns the time in seconds.
        """
        self.path, self.resume = Path(path), resume
        self._on_failure, self._now = on_failure, now
        self._identity: Mapping[str, str] | None = None
        self._stages: dict[str, Any] = {}
        self._written: int | None = None
        self._search: SearchStore | None = None
        self._due = 0.0

    @property
    def kept(self) -> bool:
        """Whether the file now holds all stages that are done."""
        return self._written == len(self._stages)

    def begin(self, identity: Mapping[str, str]) -> None:
        """Begin with a merge.

        Args:
            identity: all that its result depends on, name -> value or hash.

        Raises:
            InputError: it is to be resumed, and the file is missing, damaged, or of another merge.
        """
        self._identity = identity
        self._due = self._now() + self.interval
        if self.resume:
            self._stages = self._read(identity)
            self._written = len(self._stages)

    def of(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a stage came to: from the file, or made now.

        Args:
            name: of the stage, another one for each.
            make: does it; returns tensors and plain values in dicts and lists.
        """
        if name not in self._stages:
            self._stages[name] = make()
            if self._search is not None or self._now() >= self._due:
                self.flush()
        if self._search is not None:
            self._search.discard()
            self._search = None
        return self._stages[name]

    def search_store(self) -> SearchStore:
        """Return where the search of the stage that is made is kept."""
        path = self.path.with_suffix(f".step{len(self._stages)}")
        self.flush()
        resume = self.resume and path.exists()
        self._search = SearchStore(path, resume=resume, on_failure=self._on_failure)
        return self._search

    def flush(self) -> None:
        """Write what is done, unless the file has it."""
        if self._identity is None:
            return
        if self._search is not None:
            self._search.flush()
        if self.kept:
            return
        document = {"schema": SCHEMA, "identity": dict(self._identity), "stages": self._stages}
        try:
            with atomic_write(self.path) as temporary:
                torch.save(document, temporary)
            self._written = len(self._stages)
        except (InputError, RuntimeError, MemoryError) as error:
            self._on_failure(f"the merge goes on, but its stages could not be kept: {error}")
        self._due = self._now() + self.interval

    def discard(self) -> None:
        """Remove the files: the merge has ended, and what it made is in safety."""
        self._written = self._identity = None
        for path in (self.path, *self.path.parent.glob(f"{self.path.stem}.step[0-9]*")):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._on_failure(f"{path} is needed no more, but cannot be removed: {error}")

    def _read(self, identity: Mapping[str, str]) -> dict[str, Any]:
        document = self._load()
        known = document.get("identity") if isinstance(document, dict) else None
        stages = document.get("stages") if isinstance(document, dict) else None
        if not isinstance(known, dict) or not isinstance(stages, dict):
            raise self._unusable("it holds no merge")
        if document.get("schema") != SCHEMA:
            raise self._unusable(f"expected a merge kept by this release ({SCHEMA})")
        different = [name for name, value in identity.items() if known.get(name) != value]
        if different:
            raise InputError(
                f"cannot resume the merge in {self.path}, as it is another one; not the same:\n"
                f"{bullet_list(different)}\nrepeat the command as it was and add --resume, or "
                "remove the file to begin anew"
            )
        return stages

    def _load(self) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(
                f"there is nothing to resume: {self.path} does not exist; leave out --resume to "
                "begin anew, or name the outputs as in the command that was interrupted"
            ) from None
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        except _DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise self._unusable(f"it is damaged, or no kept merge ({reason})") from error

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"cannot resume the merge in {self.path}: {reason}; remove the file and leave out "
            "--resume to begin anew"
        )


def stage(store: StageStore | None, name: str, make: Callable[[], Any]) -> Any:
    """Return what a stage comes to, see `StageStore.of`; made now without a store."""
    return make() if store is None else store.of(name, make)


def identity_of(
    networks: Sequence[StateDict], examples: Sequence[Examples], settings: Mapping[str, object]
) -> dict[str, str]:
    """Return all that a merge depends on: name -> value, or hash of tensors."""
    leaves = [tree_leaves((lot.inputs, lot.targets)) for part in examples for lot in part.lots]
    tensors = {f"{n} {k}": t for n, lot in enumerate(leaves) for k, t in enumerate(lot)}
    return {
        "the version of gpu-align": str(version("gpu-align")),
        "the networks": hash_tensors(map(_tensors, networks)),
        "the data": hash_tensors([_tensors(tensors)]),
        **{name: str(value) for name, value in settings.items()},
    }


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
