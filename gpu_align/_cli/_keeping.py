"""How `align` and `merge` keep unfinished work beside the outputs, and say how it is continued."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpu_align._align import AlignmentResult
from gpu_align._checkpoint import Checkpoint
from gpu_align._cli._outputs import Outputs, check_unchanged, joined
from gpu_align._cli._terminal import say, warn
from gpu_align._errors import GpuAlignError, InputError
from gpu_align._interrupt import uninterrupted
from gpu_align._merge import StageStore
from gpu_align._search import SearchStore
from gpu_align._status import Status


def make_store(outputs: Outputs, *, resume: bool) -> SearchStore | None:
    """Return where a search is kept; None if nothing is to be written.

    Raises:
        InputError: there is nothing to resume, or a kept search would be lost.
    """
    path = _place(outputs, "search", resume=resume)
    return None if path is None else SearchStore(path, resume=resume, on_failure=warn)


def make_stage_store(outputs: Outputs, *, resume: bool) -> StageStore | None:
    """Return where the stages of a merge are kept; None if nothing is to be written.

    Raises:
        InputError: there is nothing to resume, or a kept merge would be lost.
    """
    path = _place(outputs, "merge", resume=resume)
    return None if path is None else StageStore(path, resume=resume, on_failure=warn)


def _place(outputs: Outputs, work: str, *, resume: bool) -> Path | None:
    path = outputs.state
    if path is None:
        if resume:
            raise InputError(
                f"--resume: a {work} is kept beside its outputs, but none is named; name them as "
                "in the command that was interrupted"
            )
        return None
    if path.exists() and not resume:
        raise InputError(
            f"{path} keeps a {work} that was interrupted; add --resume to continue it, or remove "
            "the file to begin anew"
        )
    return path


@contextmanager
def keeping(store: SearchStore | StageStore | None) -> Iterator[None]:
    """Keep the work, whatever ends the body before the outputs are written."""
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
    digests: Mapping[Path, str],
) -> tuple[dict[str, str], GpuAlignError | None]:
    """Write the outputs, see `Outputs.write`; a search that has ended is no longer kept.

    Ctrl-C does not end it: it takes a moment, and a second one still does. What the search cannot
    be resumed after, such as a checkpoint in the place of its source, comes last and after the
    kept search is gone: killed before, the command can be run again or resumed, killed after, it
    is done.

    Args:
        outputs: where to.
        result: what was found.
        source: what it was found for.
        title: of the report.
        store: where the search is kept.
        digests: of what is replaced, see `Outputs.digests`.

    Returns:
        option -> path of what was written, and why something was not.
    """
    last = outputs.held_back(source)
    with uninterrupted(deliver=False):
        written, failures = outputs.write(result, source, title, but=last)
        if result.status is Status.INTERRUPTED and store is not None and store.kept:
            return written, joined(failures)
        if last and not failures:
            if store is not None:
                store.remove()
            try:
                check_unchanged(digests)
            except GpuAlignError as error:
                if store is not None:
                    store.discard()  # it could not be resumed
                return written, error
            others = [name for name in vars(outputs) if name not in last]
            more, failures = outputs.write(result, source, title, but=others)
            written = more | written
        if store is not None and failures:
            store.flush()
        elif store is not None and result.status is not Status.INTERRUPTED:
            store.discard()
    return written, joined(failures)


def tell_how_to_continue(
    store: SearchStore | StageStore | None, unwritten: Path | None = None
) -> None:
    """Say how interrupted work is continued, if it is kept.

    Args:
        store: where.
        unwritten: the checkpoint that was not written.
    """
    if store is None or not store.kept:
        return
    work = "search" if isinstance(store, SearchStore) else "merge"
    text = f"to continue, run the same command with --resume: the {work} is kept in {store.path}"
    if unwritten is not None:
        text += (
            "; with --resume --steps 1 what is left of it ends after a step, and the best found is "
            f"written to {unwritten}"
        )
    say(text)
