"""Where results go: checked before a search starts, written when it has ended."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from gpu_align._align import AlignmentResult
from gpu_align._checkpoint import (
    INDEX_SUFFIX,
    Checkpoint,
    check_conversion,
    output_format,
    save_checkpoint,
)
from gpu_align._errors import CheckpointError, GpuAlignError, InputError, bullet_list
from gpu_align._proof import Proof
from gpu_align._symmetry import Comparison

_LONGEST_NAME = 255  # bytes, on nearly every file system

STATE_SUFFIX = ".search"
"""Of the file beside the outputs in which a running search is kept."""


def check_file(path: Path, suffixes: Iterable[str], *, reads: Iterable[Path]) -> None:
    """Check that a file can be written.

    Args:
        path: the file.
        suffixes: the extensions it may have.
        reads: files that it must not overwrite.

    Raises:
        InputError: it cannot be written there.
    """
    if path.suffix.lower() not in suffixes:
        got = f'unknown extension "{path.suffix}"' if path.suffix else "no extension"
        raise InputError(f"cannot write {path}: {got}; choose {' or '.join(suffixes)}")
    _check_replaceable(path, reads)


def _check_replaceable(path: Path, reads: Iterable[Path]) -> None:
    _check_place(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file inside it")
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is a pipe or a device; give the name of a file")
    _check_overwrites_none(path, reads)


def _check_overwrites_none(path: Path, reads: Iterable[Path]) -> None:
    for other in reads:
        if path.exists() and other.exists() and path.samefile(other):
            raise InputError(
                f"cannot write {path}: it would overwrite an input ({other}); choose another path"
            )


def check_folder(path: Path) -> None:
    """Check that a folder can be written to, or made with those around it; nothing is made yet.

    Raises:
        InputError: it cannot.
    """
    try:
        nearest = next(each for each in (path, *path.parents) if each.exists())
    except OSError as error:  # a name that is too long
        raise InputError(f"cannot make {path}: {error.strerror}; choose another folder") from error
    if not nearest.is_dir():
        raise InputError(f"cannot make {path}: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write to {path}: the folder {nearest} is not writable; choose another one"
        )


def check_unchanged(digests: Mapping[Path, str]) -> None:
    """Check that files still hold what they did, before they are replaced.

    Raises:
        GpuAlignError: somebody else has written to one of them.
    """
    for path, digest in digests.items():
        if not path.is_file() or _digest(path) != digest:
            raise GpuAlignError(
                f"{path} was written to by somebody else during the search, so it was not replaced "
                "by its reordered old content; run the command again to align what is there now, "
                "or write to another path"
            )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what a library raises while a file is written be an error that names the file.

    Raises:
        GpuAlignError: it could not be written.
    """
    try:
        yield
    except GpuAlignError:
        raise
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        # Libraries that write have classes of their own for a full disk.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise GpuAlignError(
            f"cannot write {path}: {reason}; check free space and memory"
        ) from error


def joined(failures: Sequence[GpuAlignError]) -> GpuAlignError | None:
    """Return one error that says what all of them say; None for none."""
    if len(failures) < 2:
        return failures[0] if failures else None
    kind = InputError if all(isinstance(error, InputError) for error in failures) else GpuAlignError
    return kind(f"not all could be written:\n{bullet_list([str(error) for error in failures])}")


def check_preserved(compared: Comparison | None, network: str) -> None:
    """Check before anything is written that outputs have not changed, as far as it is known.

    Raises:
        GpuAlignError: they differ by more than the limit.
    """
    if compared is not None and not compared.is_preserved:
        raise GpuAlignError(
            f"the {network} network does not compute the same outputs (relative difference "
            f"{compared.difference:.3g}), so nothing was written; please report it with the "
            "output of `gpu-align inspect --json`"
        )


def check_checkpoint(path: Path, like: Checkpoint, *, reads: Iterable[Path]) -> None:
    """Check that `save_checkpoint(path, ..., like=like)` will have a place to write to.

    Args:
        path: the file or, for a sharded checkpoint, the folder.
        like: the checkpoint that is written back with its units reordered.
        reads: files that must not be overwritten.

    Raises:
        InputError: it cannot be written there.
    """
    if output_format(path, like) in ("shards", "folder"):
        folder = path.parent if path.name.endswith(INDEX_SUFFIX) else path
        _check_place(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(
                f"cannot write the checkpoint to {folder}: it is not an empty folder; choose a new "
                "one"
            )
        return
    _check_replaceable(path, reads)
    check_conversion(path, like)


def _check_place(path: Path) -> None:
    folder = path.parent
    try:
        path.exists()
    except OSError as error:  # a name that is too long
        raise InputError(f"cannot write {path}: {error.strerror}; choose another path") from error
    if not folder.exists():
        raise InputError(
            f"cannot write {path}: the folder {folder} does not exist; create it first"
        )
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file; choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {path}: the folder {folder} is not writable; choose another"
        )


@dataclass(frozen=True)
class Outputs:
    """The files that `align` writes; None where none is wanted.

    Attributes:
        out: the source with its units reordered.
        permutation: the index vectors and the spec, for `apply`.
        json_file: the result, for `report`.
        report: the page.
        proof: its duals, of a proof that was asked for.
    """

    out: Path | None
    permutation: Path | None
    json_file: Path | None
    report: Path | None
    proof: Path | None = None

    @property
    def state(self) -> Path | None:
        """The file beside the first output in which the search is kept; None without outputs."""
        path = next((p for f in fields(self) if (p := getattr(self, f.name)) is not None), None)
        if path is None:
            return None
        # A folder of shards must have nothing else in it.
        path = path.parent if path.name.endswith(INDEX_SUFFIX) else path
        path = path.resolve() if path.name in ("", "..") else path
        if not path.name:
            return None  # the root, where nothing can be written
        name = path.name + STATE_SUFFIX
        if len(os.fsencode(name)) > _LONGEST_NAME:
            digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
            name = f"gpu-align-{digest}{STATE_SUFFIX}"
        return path.with_name(name)

    def held_back(self, source: Checkpoint) -> tuple[str, ...]:
        """Return the outputs that are written last, and not at all if the search is to be resumed.

        They are the checkpoint in the place of the source, which the search goes on with, and
        the folder, which is written only once.
        """
        if self.out is None:
            return ()
        is_folder = output_format(self.out, source) in ("shards", "folder")
        return ("out",) if is_folder or self.replaces(source) else ()

    def replaces(self, source: Checkpoint) -> bool:
        """Say whether `out` is a file of the source."""
        if self.out is None or not os.path.exists(self.out):
            return False
        return any(os.path.samefile(self.out, file) for file in source.files)

    def check(self, source: Checkpoint, target: Checkpoint, *others: Path | None) -> None:
        """Check all of them before the search, so that none of it is lost.

        A source of one file may be overwritten by `out`: it is the same network in another order.

        Args:
            source: the checkpoint that is reordered.
            target: the checkpoint that stays.
            others: further files that are read; None is passed over.

        Raises:
            InputError: one of them cannot be written.
        """
        kept = [*target.files, *(path for path in others if path is not None)]
        reads = [*source.files, *kept]
        if self.out is not None:
            check_checkpoint(self.out, source, reads=kept if source.shards is None else reads)
        if self.permutation is not None:
            check_file(self.permutation, [".safetensors"], reads=reads)
        if self.json_file is not None:
            check_file(self.json_file, [".json"], reads=reads)
        if self.report is not None:
            check_file(self.report, [".html", ".htm"], reads=reads)
        if self.proof is not None:
            check_file(self.proof, [".safetensors"], reads=reads)
        if self.state is not None:
            _check_overwrites_none(self.state, reads)
        self._check_apart()

    def _check_apart(self) -> None:
        """Check that no two outputs have one path, and that none goes into the folder of shards."""
        chosen = [path for field in fields(self) if (path := getattr(self, field.name)) is not None]
        places = [path.resolve() for path in chosen]
        for number, place in enumerate(places):
            if place in places[:number] or any(place.parent == other for other in places):
                raise InputError(
                    f"cannot write {chosen[number]}: another output goes there too; choose paths "
                    "of their own"
                )

    def write(
        self,
        result: AlignmentResult,
        source: Checkpoint,
        title: str,
        *,
        but: Collection[str] = (),
    ) -> tuple[dict[str, str], list[GpuAlignError]]:
        """Write what is wanted; one failure does not keep the others from being written.

        Args:
            result: what was found.
            source: what the aligned checkpoint is written like.
            title: of the report.
            but: outputs that are left out.

        Returns:
            option -> path of what was written, and the failures.
        """
        written: dict[str, str] = {}
        failures: list[GpuAlignError] = []
        for field in fields(self):
            path: Path | None = getattr(self, field.name)
            if path is None or field.name in but:
                continue
            try:
                with writing(path):
                    self._write_one(field.name, path, result, source, title)
                written[field.name] = str(path)
            except GpuAlignError as error:
                failures.append(error)
        return written, failures

    def digests(self, source: Checkpoint) -> dict[Path, str]:
        """Return what the files hold that `out` replaces, if it replaces the source."""
        return {path: _digest(path) for path in source.files} if self.replaces(source) else {}

    def _write_one(
        self, name: str, path: Path, result: AlignmentResult, source: Checkpoint, title: str
    ) -> None:
        match name:
            case "out":
                save_checkpoint(path, result.state_dict, like=source)
            case "permutation":
                result.permutation.save(path)
            case "json_file":
                result.save_json(path)
            case "proof":
                if not isinstance(result.proof, Proof):
                    raise GpuAlignError(
                        f"cannot write {path}: the search was interrupted before a proof was begun"
                    )
                result.proof.save(path)
            case "report":
                # Figures are slow to import, and few runs want them.
                from gpu_align._report import write_report

                write_report(result, path, title=title)
