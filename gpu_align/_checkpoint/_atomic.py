"""Writing that either finishes or leaves what was there before.

The new content goes to a temporary name beside the target and is renamed over it as the last step.
One rule for all outputs: a symbolic link is written through, and only files are replaced, never a
pipe or a device. What runs that were killed have left behind is removed by the next one.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from gpu_align._errors import CheckpointError, InputError


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str],
    error: type[InputError] = InputError,
    *,
    mode: int | None = None,
) -> Iterator[Path]:
    """Replace the file `path` with what the body writes to the yielded temporary path.

    If the body raises (KeyboardInterrupt too), `path` stays as it was and the temporary file is
    removed. An existing file keeps its permission bits; a symbolic link stays, and the file that it
    points to is replaced.

    Args:
        path: the file to write; its folder must exist.
        error: the class of the errors raised.
        mode: the permission bits of a new file; None for the usual ones.

    Yields:
        An empty file in the folder of `path`, to be overwritten.

    Raises:
        InputError: (as `error`) `path` is a folder, a pipe or a device, its folder is missing or
            not writable, or an OSError came from the body or from the renaming.
    """
    target = _checked_destination(path, error)
    temporary = _temporary_beside(target)
    try:
        _check_replaceable(path, target, error)
        temporary.touch(exist_ok=False)
        usual = temporary.stat().st_mode if mode is None else mode
        yield temporary
        # safetensors makes files that only their owner can read, whatever the umask.
        os.chmod(temporary, target.stat().st_mode if target.exists() else usual)
        os.replace(temporary, target)
    except OSError as failure:
        raise error(_os_message(path, failure)) from failure
    finally:
        # After a success the name is gone; after a failure the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], error: type[InputError] = InputError
) -> Iterator[Path]:
    """Create the folder `path` with what the body writes into the yielded temporary folder.

    If the body raises, nothing is left behind.

    Args:
        path: a folder that does not exist yet or is empty; the folder around it must exist.
        error: the class of the errors raised.

    Yields:
        An empty folder beside `path`.

    Raises:
        InputError: (as `error`) `path` is a file or holds something, the folder around it is
            missing or not writable, or an OSError came from the body or from the renaming.
    """
    target = _checked_destination(path, error)
    temporary = _temporary_beside(target)
    try:
        _check_empty(path, target, error)
        temporary.mkdir()
        yield temporary
        os.replace(temporary, target)
    except OSError as failure:
        raise error(_os_message(path, failure)) from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: str | os.PathLike[str], error: type[InputError] = CheckpointError) -> None:
    """Create a folder and those around it; one that exists stays as it is.

    Raises:
        InputError: (as `error`) it cannot be created.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise error(_os_message(path, failure)) from failure


def destination(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path that the system means by `path`.

    Symbolic links are followed, also where ".." comes behind one. A folder that does not exist is
    no way to another one: `missing/../file` has no destination, as for every other program.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be looked at.
    """
    place = Path(path)
    for _ in range(_MOST_LINKS):
        if place.name in ("", ".."):
            return place.resolve(strict=True)
        place = place.parent.resolve(strict=True) / place.name
        if not place.is_symlink():
            return place
        place = place.parent / os.readlink(place)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


_MOST_LINKS = 40  # as in Linux


def _temporary_beside(target: Path) -> Path:
    """Return a new name, after what dead processes have left behind is removed."""
    for entry in target.parent.glob(".gpu-align-*.tmp"):
        name = _TEMPORARY.fullmatch(entry.name)
        if name is not None and name["machine"] == _machine() and not _is_alive(int(name["owner"])):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    # Not derived from the target's name, which may already have the longest length allowed.
    return target.parent / f".gpu-align-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


_TEMPORARY = re.compile(
    r"\.gpu-align-(?P<machine>[0-9a-f]{8})-(?P<owner>[0-9]{1,9})-[0-9a-f]+\.tmp"
)


@functools.cache
def _machine() -> str:
    """Return what tells apart machines, and containers, whose numbers of processes differ."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    if os.name != "posix" or process == 0:
        return True  # there is no way to ask without ending it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_replaceable(path: str | os.PathLike[str], target: Path, error: type[InputError]) -> None:
    if target.is_dir():
        raise error(f"cannot write {path}: it is a folder; give the name of a file inside it")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise error(
            f"cannot write {path}: it is a pipe or a device, which cannot be replaced at one "
            "stroke; write a file, and copy that"
        )


def _checked_destination(path: str | os.PathLike[str], error: type[InputError]) -> Path:
    parent = Path(path).parent
    try:
        if not parent.exists():
            raise error(f"cannot write {path}: the folder {parent} does not exist; create it first")
        if not parent.is_dir():
            raise error(
                f"cannot write {path}: {parent} is a file, not a folder; choose another path"
            )
        return destination(path)
    except OSError as failure:
        raise error(_os_message(path, failure)) from failure


def _check_empty(path: str | os.PathLike[str], target: Path, error: type[InputError]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise error(f"cannot write the folder {path}: a file has that name; choose another path")
    if any(target.iterdir()):
        raise error(
            f"cannot write the folder {path}: it is not empty; choose a new or an empty folder"
        )


def _os_message(path: str | os.PathLike[str], failure: OSError) -> str:
    reason = failure.strerror or str(failure)
    return (
        f"cannot write {path}: {reason}; check free space and permissions, or choose another path"
    )
