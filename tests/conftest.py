"""Fixtures shared by all tests, and what may be skipped."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from trained_digits import trained_folder as trained_folder
from trained_digits import trained_states as trained_states

from gpu_align._device._random import RandomStream

if TYPE_CHECKING:
    from auction_host import HostDevice

# Without a GPU Triton's kernels run in its interpreter. Triton reads this when it is imported,
# which nothing here has done yet.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

PROOFS = os.environ.get("GPU_ALIGN_PROOFS") == "1"
"""Set by CI: a test that is skipped for want of a library or a compiler fails."""

settings.register_profile("gpu_align", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gpu_align")


@pytest.fixture(autouse=True, scope="session")
def mended_interpreter() -> Iterator[None]:
    """Mend Triton's interpreter for bfloat16, where Triton is interpreted."""
    from triton_devices import INTERPRETED, mend_interpreter

    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED and find_spec("triton"):
            mend_interpreter(patch)
        yield


def pytest_configure() -> None:
    """Look for no garbage among what is imported: a fifth of the time until the first test."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for it again, but not among all that has been imported and collected."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let all of it go, as libraries ask for that count what is left at the end."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Return a folder, and check that no temporary file is left in it."""
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".gpu-align-")] == []


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Hold a whole file to `PROOFS`."""
    report = yield
    if PROOFS:
        forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hold a test to `PROOFS`; what needs a GPU or the trained pairs is excused."""
    report = yield
    excused = item.get_closest_marker("gpu") or item.get_closest_marker("pairs")
    if PROOFS and not excused:
        forbid_skip(report)
    return report


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure."""
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"GPU_ALIGN_PROOFS=1 allows no skip: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread, in what is started, too: the networks are too small for more.

    Threads that wait for each other turn, and the workers of the tests have the other cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """Take Ctrl-C, as children then do too: a shell has jobs in the background ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    # Not `torch.manual_seed`: it notes the whole stack for CUDA, a millisecond a test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def auction_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assignment kernels, compiled for the host once for all workers; skips without g++."""
    from auction_host import COMPILER, build, shared_folder

    if COMPILER is None:
        pytest.skip("needs g++")
    with shared_folder(tmp_path_factory) as folder:
        return build(folder)


@pytest.fixture
def auction_on_host(auction_library: Path, monkeypatch: pytest.MonkeyPatch) -> "HostDevice":
    """Let `AuctionAssignment` solve tensors on the CPU, by the device code built for the host.

    A test that asks for this fixture runs what it would run on a GPU (checks, launcher, kernels),
    bit for bit but for the order of float64 sums:

        @pytest.mark.usefixtures("auction_on_host")
        def test_the_device_path():
            queued = AuctionAssignment().enqueue(AssignmentProblem(cost))  # cost on the CPU
            raise_failures(queued.status_codes)

    Pass `AuctionAssignment()` where a solver is asked for: `AutoAssignment` still takes a CPU
    solver for tensors on the CPU. The value counts launches in `kernels`, one entry for each,
    and lowering its `shared_limit` makes the launcher choose the kernels of large problems.
    It runs on one thread: a few problems of n = 512 take a second.
    """
    from auction_host import HostDevice

    device = HostDevice(auction_library)
    device.install(monkeypatch)
    return device


def _set_sync_debug_mode(mode: str) -> None:
    """Set it without torch's remark, once a process, that it doesn't see every wait."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture
def no_waits() -> Callable[[], AbstractContextManager[None]]:
    """A context in which whatever waits for the device raises, and nothing after it does."""

    @contextmanager
    def forbidden() -> Iterator[None]:
        try:
            _set_sync_debug_mode("error")
            yield
        finally:
            _set_sync_debug_mode("default")

    return forbidden


@pytest.fixture
def stream() -> RandomStream:
    return RandomStream(0)


@pytest.fixture
def nan_filled_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh float memory with NaN, so that reading it before it is written shows."""

    def poisoned(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: object, **kwargs: object) -> torch.Tensor:
            tensor = original(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of a result out of its page, for they take nearly all of its time."""
    monkeypatch.setattr("gpu_align._report._page.pictures", lambda result: [])


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the figures of a page, but do not lay them out and draw them."""
    monkeypatch.setattr("gpu_align._report._pictures._encoded", lambda *figure: "data:image/png;")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that we are in; what a command puts on `sys.path` is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
