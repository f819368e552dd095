"""Who does the shards: this process, processes beside it, or a Ray cluster."""

import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol, TypeVar

import torch

from gpu_align._assignment import thread_count
from gpu_align._errors import GpuAlignError, InputError, UnavailableError

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Any, T], R]
"""Does a task in a context; a function of a module, so that other processes find it."""

_DEATHS = 3
"""How often a task may take its process with it."""
_PATIENCE = 10.0
"""Seconds until an address counts as one where nobody answers."""
_AHEAD = 2
"""Tasks that wait for each worker."""


class Engine(Protocol):
    """Does tasks; their order and the number of workers change no result."""

    def open(self) -> None:
        """Find out whether there is somebody to do tasks, before anything is begun.

        Raises:
            GpuAlignError: nobody answers.
        """

    def each(self, work: Work, context: Any, tasks: Sequence[T]) -> Iterator[tuple[T, R | None]]:
        """Yield each task with its result as it is done; None for one that its workers die of.

        Raises:
            What the work raises; then tasks that were begun are given up.
        """

    def close(self) -> None:
        """Leave nothing behind; called once, when no more tasks come."""


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine, one thread each.

    Attributes:
        workers: how many; with one the work is done in this process.
        devices: of the workers, in turn; empty for what the settings say.
    """

    workers: int
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, workers: int | None, device: str) -> "LocalEngine":
        """Return one worker for each CUDA device if these are used, else one for each CPU."""
        cuda = device != "cpu" and torch.cuda.is_available()
        found = torch.cuda.device_count() if cuda else thread_count(None)
        count = found if workers is None else workers
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"expected workers=None or a number above 0, got workers={workers!r}")
        return cls(count)

    def open(self) -> None:
        """See `Engine.open`: this process answers."""

    def each(self, work: Work, context: Any, tasks: Sequence[T]) -> Iterator[tuple[T, R | None]]:
        """See `Engine.each`."""
        if min(self.workers, len(tasks)) <= 1:
            for task in tasks:
                yield task, work(context, task)
            return
        payload = pickled(work, context)
        left, deaths = dict(enumerate(tasks)), dict.fromkeys(range(len(tasks)), 0)
        while left:
            running: dict[Future[R], int] = {}
            # What was running when a process died is done again by itself, one after another.
            suspects = [number for number in left if deaths[number]]
            workers = 1 if suspects else min(self.workers, len(left))
            with _pool(workers, payload) as pool:
                waiting = iter(suspects or list(left))
                most = 1 if suspects else _AHEAD * workers
                try:
                    for number, result in _submitted(pool, waiting, left, running, most):
                        yield left.pop(number), result
                except BrokenProcessPool:
                    for number in running.values():
                        deaths[number] += 1
                        if deaths[number] >= _DEATHS:
                            yield left.pop(number), None

    def close(self) -> None:
        """See `Engine.close`: processes end with their tasks."""


def _submitted(
    pool: ProcessPoolExecutor,
    waiting: Iterator[int],
    tasks: dict[int, T],
    running: dict[Future, int],
    most: int,
) -> Iterator[tuple[int, Any]]:
    """Give tasks to a pool, a few at a time; yield the number and the result of each."""
    while True:
        while len(running) < most and (number := next(waiting, None)) is not None:
            running[pool.submit(_do, tasks[number])] = number
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            result = future.result()
            yield running.pop(future), result


@contextmanager
def _pool(workers: int, payload: bytes) -> Iterator[ProcessPoolExecutor]:
    """Make processes that end with this one, and at once where the body does not end well."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(payload,))
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def pickled(work: Work, context: Any) -> bytes:
    """Return the work and its context as bytes for other processes.

    Raises:
        InputError: something in it cannot be sent.
    """
    try:
        return pickle.dumps((work, context))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"the model, the search or the settings cannot be sent to other processes: {error}; "
            "define the model's class in a module that can be imported, or use workers=1"
        ) from error


_work: list[Any] = []  # of this process: the function and its context


def _begin(payload: bytes) -> None:
    """Prepare a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of the first process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _work[:] = pickle.loads(payload)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _do(task: Any) -> Any:
    work, context = _work
    return work(context, task)


@dataclass(frozen=True)
class RayEngine:
    """A Ray cluster: its scheduler, its object store, its retries.

    Attributes:
        address: of the cluster; None for the one that this process uses or the environment names
            (`RAY_ADDRESS`), else for one that is begun on this machine.
        workers: most tasks at a time; None for what the cluster has.
        gpus: of each task.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0
    _opened: list[Any] = field(default_factory=list, repr=False)

    def open(self) -> None:
        """See `Engine.open`; a Ray of its own is begun once there are tasks for it."""
        if self._named:
            self._connect(find_ray())

    def each(self, work: Work, context: Any, tasks: Sequence[T]) -> Iterator[tuple[T, R | None]]:
        """See `Engine.each`; a single task is done in this process."""
        if len(tasks) <= 1:
            yield from LocalEngine(1).each(work, context, tasks)
            return
        ray = find_ray()
        try:
            self._connect(ray)
            yield from self._done(ray, work, context, tasks)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, GpuAlignError) else error from None
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise GpuAlignError(
                f"Ray has ended: {error}; what is done is kept: start Ray, and run the same "
                "command with --resume"
            ) from error

    @property
    def _named(self) -> str | None:
        """Address of a cluster that was named, here or as Ray's own commands take it."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def _connect(self, ray: Any) -> None:
        """Use the Ray that this process uses already, or connect to one, or begin one."""
        if ray.is_initialized():
            return
        address = self._named or "local"  # else Ray looks for what others have begun
        own = {} if self._named else {"num_cpus": self.workers, "include_dashboard": False}
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error", **own)
        except (ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
            where = f"at {address}" if self._named else "on this machine"
            raise GpuAlignError(
                f"no Ray answers {where}: {error}; start it with `ray start --head`, check the "
                "address, or leave the address out"
            ) from error
        self._opened.append(ray)

    def close(self) -> None:
        """See `Engine.close`: what this engine began is ended."""
        while self._opened:
            self._opened.pop().shutdown()

    def _done(
        self, ray: Any, work: Work, context: Any, tasks: Sequence[T]
    ) -> Iterator[tuple[T, R | None]]:
        payload = ray.put(ray.cloudpickle.dumps((work, context)))
        options = {"num_cpus": 1, "num_gpus": self.gpus, "max_retries": _DEATHS}
        remote = ray.remote(**options)(_do_remote)
        most = self.workers
        if most is None or (self._opened and not self._named):  # Ray itself counts the workers
            most = _AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        waiting, running = iter(tasks), dict[Any, T]()
        while True:
            while len(running) < most and (task := next(waiting, None)) is not None:
                running[remote.remote(payload, task)] = task
            if not running:
                return
            for done in ray.wait(list(running), num_returns=1)[0]:
                task = running.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.WorkerCrashedError:
                    result = None  # Ray has tried it again
                yield task, result


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT, for which Ray waits minutes, and in vain."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()


def _do_remote(payload: bytes, task: Any) -> Any:
    key = hash(payload)
    if not _work or _work[0] != key:
        torch.set_num_threads(1)
        _work[:] = [key, *pickle.loads(payload)]
    return _work[1](_work[2], task)


def find_ray() -> Any:
    """Return Ray.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UnavailableError(
            "the engine ray needs Ray; run `pip install gpu-align[ray]`, or use the engine local"
        ) from error
