"""How `align` keeps a running search beside its outputs, and says how it is continued."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from gpu_align._align import AlignmentResult
from gpu_align._checkpoint import Checkpoint
from gpu_align._cli._outputs import Outputs
from gpu_align._cli._terminal import warn
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._search import SearchStore
from gpu_align._status import Status


def make_store(outputs: Outputs, *, resume: bool) -> SearchStore | None:
    """Return where the search is kept; None if nothing is to be written.

    Raises:
        InputError: there is nothing to resume, or a kept search would be lost.
    """
    path = outputs.state
    if path is None:
        if resume:
            raise InputError(
                "--resume: a search is kept beside its outputs, but none is named; name them as in "
                "the command that was interrupted"
            )
        return None
    if path.exists() and not resume:
        raise InputError(
            f"{path} keeps a search that was interrupted; add --resume to continue it, or remove "
            "the file to begin anew"
        )
    return SearchStore(path, resume=resume, on_failure=warn)


@contextmanager
def keeping(store: SearchStore | None) -> Iterator[None]:
    """Keep the search, whatever ends the body before the outputs are written."""
    try:
        yield
    except (KeyboardInterrupt, MemoryError, RuntimeError, OSError):
        if store is not None:
            store.flush()
        tell_how_to_continue(store)
        raise


def write_and_discard(
    outputs: Outputs,
    result: AlignmentResult,
    source: Checkpoint,
    title: str,
    store: SearchStore | None,
) -> tuple[dict[str, str], GpuAlignError | None]:
    """Write the outputs, see `Outputs.write`; a search that has ended is no longer kept.

    Ctrl-C does not end it: it takes a moment, and a second one still does.
    """
    interrupted = result.status is Status.INTERRUPTED
    with uninterrupted(deliver=False):
        if not interrupted or store is None or not store.kept:
            written, failure = outputs.write(result, source, title)
        else:
            written, failure = outputs.write(result, source, title, but=outputs.held_back(source))
        if store is not None and failure is not None:
            store.flush()
        elif store is not None and not interrupted:
            store.discard()
    return written, failure


def tell_how_to_continue(store: SearchStore | None, unwritten: Path | None = None) -> None:
    """Say how an interrupted search is continued, if it is kept.

    Args:
        store: where.
        unwritten: the checkpoint that was not written.
    """
    if store is None or not store.kept:
        return
    text = f"to continue, run the same command with --resume: the search is kept in {store.path}"
    if unwritten is not None:
        text += f"; with --resume --steps 1 it only writes the best found so far to {unwritten}"
    typer.echo(text, err=True)
