"""Writing that either finishes or leaves what was there before.

The new content goes to a temporary name beside the target and is renamed over it as the last step.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpu_align._errors import InputError


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], error: type[InputError] = InputError
) -> Iterator[Path]:
    """Replace the file `path` with what the body writes to the yielded temporary path.

    If the body raises (KeyboardInterrupt too), `path` stays as it was and the temporary file is
    removed. An existing file keeps its permission bits; a symbolic link is itself replaced, and
    the file it points to is left alone.

    Args:
        path: the file to write; its folder must exist.
        error: the class of the errors raised.

    Yields:
        An empty file in the folder of `path`, to be overwritten.

    Raises:
        InputError: (as `error`) `path` is a folder, its folder is missing or not writable, or an
            OSError came from the body or from the renaming.
    """
    target = _checked_destination(path, error)
    temporary = _temporary_beside(target)
    try:
        if target.is_dir():
            raise error(f"cannot write {path}: it is a folder; give the name of a file inside it")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors makes files that only their owner can read, whatever the umask.
        os.chmod(temporary, target.stat().st_mode if target.exists() else mode)
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


def destination(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path that the system means by `path`.

    Symbolic links to folders are followed, also where ".." comes behind one. The last name is
    kept, so that a link with that name is replaced. A folder that does not exist is no way to
    another one: `missing/../file` has no destination, as for every other program.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: it cannot be looked at.
    """
    given = Path(path)
    if given.name in ("", ".."):
        return given.resolve(strict=True)
    return given.parent.resolve(strict=True) / given.name


def _temporary_beside(target: Path) -> Path:
    # Not derived from the target's name, which may already have the longest length allowed.
    return target.parent / f".gpu-align-{secrets.token_hex(8)}.tmp"


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
