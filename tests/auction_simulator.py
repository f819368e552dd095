"""The CUDA kernels of the assignment solver, thread by thread in the simulator (`simulator/`).

`SimulatedDevice` takes the place of CuPy and the GPU like `auction_host.HostDevice`, with as many
blocks, warps and lanes as a `Layout` says, and keeps what the simulator reports.
"""

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path

from auction_host import COMPILER, HERE, PLAN, SOURCES, HostDevice

from gpu_align.kernels import auction as launcher

SIMULATOR = HERE / "simulator"
RUNTIME = ("fibers", "memory", "meetings", "atomics")
ADDR2LINE = shutil.which("addr2line")
ACCESSES = 100_000_000
"""After so many a launch is called endless."""

_RUNTIME_FLAGS = ("-O2",)
# The kernels are linked without the sanitizer's library: the runtime answers the compiler's calls.
_KERNEL_FLAGS = ("-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0")


class Policy(IntEnum):
    """Which thread runs next."""

    RANDOM = 0
    FALLING_PRIORITIES = 1
    FIRST_THREAD = 2
    LAST_THREAD = 3


@dataclass(frozen=True)
class Layout:
    """A launch as the simulator shall run it, whatever the batch.

    Attributes:
        kernel: a name of `launcher.KERNELS`.
        shared_limit: bytes of shared memory that make the launcher choose it for 33 rows and more.
        teams: blocks, or for `auction_grid` teams of blocks.
        threads: of a block.
        team_blocks: blocks of a team.
    """

    kernel: str
    shared_limit: int
    teams: int
    threads: int
    team_blocks: int = 1


def build(folder: Path, unit: str = "auction") -> Path:
    """Compile the simulator with the kernels of `simulator/{unit}.cpp` to a library."""
    assert COMPILER is not None
    common = (COMPILER, "-std=c++17", "-g", "-fPIC", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE")
    common += ("-Wno-unused-parameter", "-Wno-unknown-pragmas", f"-I{SOURCES}", "-c")
    flags = dict.fromkeys(RUNTIME, _RUNTIME_FLAGS) | {unit: _KERNEL_FLAGS}
    objects = {name: folder / f"{name}.o" for name in flags}

    def compile_unit(name: str) -> None:
        _run(*common, *flags[name], str(SIMULATOR / f"{name}.cpp"), "-o", str(objects[name]))

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_unit, flags))
    library = folder / f"{unit}.so"
    link = (COMPILER, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects.values()))
    _run(*link, "-o", str(library), "-ldl")
    return library


def _run(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    return run.stdout


class Simulator:
    """The runtime in a library made by `build`."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        word = ctypes.c_uint64
        self._options = self.library.sim_options
        self._options.argtypes = [word, ctypes.c_int, ctypes.c_double, word, word]
        for function in (self.library.sim_reports, self.library.sim_sites):
            function.argtypes, function.restype = [ctypes.c_void_p, word], word

    def set_options(
        self,
        policy: Policy = Policy.RANDOM,
        seed: int = 1,
        chance: float = 0.05,
        left_out: int = 0,
    ) -> None:
        """Say how the next launches run; `left_out` is the barrier or fence that does nothing."""
        self._options(seed, policy, chance, ACCESSES, left_out)

    def reports(self) -> list[str]:
        """Return what was found in the last launch, places as file:line."""
        room = 1 << 20
        text = ctypes.create_string_buffer(room)
        assert self.library.sim_reports(text, room) < room
        lines = [line.split("\t")[1] for line in text.value.decode().splitlines()]
        return sorted({re.sub("@([0-9a-f]+)", self._place, line) for line in lines})

    def sites(self) -> list[int]:
        """Return all barriers and fences that any launch has reached."""
        room = (ctypes.c_uint64 * 4096)()
        count = self.library.sim_sites(room, len(room))
        assert count < len(room)
        return room[:count]

    def name(self, site: int) -> str:
        """Return the place of a barrier as file:line."""
        return place_of(self.path, site - 1)

    def _place(self, match: re.Match[str]) -> str:
        return place_of(self.path, int(match[1], 16))


@cache
def place_of(library: Path, offset: int) -> str:
    """Return an offset of a library as `file:line < file:line`: a place and who calls it.

    The simulator's own headers, whose functions are inlined, are left out.
    """
    assert ADDR2LINE is not None
    lines = _run(ADDR2LINE, "-i", "-e", str(library), hex(offset)).splitlines()
    paths = [Path(line.split(" ")[0]) for line in lines]
    own = [path.name for path in paths if path.name.partition(":")[0] not in ("device.h", "cuda_host.h")]
    return " < ".join(own[:2])


class SimulatedDevice(HostDevice):
    """Runs what the launcher would give to CuPy thread by thread; `found` counts the reports."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.simulator = Simulator(library)
        self.found: Counter[str] = Counter()
        self.layout: Layout | None = None

    def use(self, layout: Layout) -> None:
        """Run the next launches so."""
        self.layout = layout
        self.shared_limit = layout.shared_limit

    def plan(self, batch: int, n: int, shared_limit: int, multiprocessors: int) -> launcher.Plan:
        """Stand in for `plan`: its kernel and memory, our blocks and threads."""
        chosen, layout = PLAN(batch, n, shared_limit, multiprocessors), self.layout
        assert layout is not None
        assert launcher.KERNELS[chosen.kernel] == layout.kernel, f"{n} rows: {chosen}"
        shared = chosen.shared_bytes
        if layout.kernel == "auction_warp":
            shared = layout.threads // 32 * chosen.team_bytes
        return replace(
            chosen,
            blocks=layout.teams * layout.team_blocks,
            threads=layout.threads,
            shared_bytes=shared,
            teams=layout.teams if chosen.teams else 0,
            team_blocks=layout.team_blocks,
        )

    def call(self, chosen: launcher.Plan, arguments: list[int | float], *rest: object) -> None:
        """Stand in for `_call`, and collect the reports."""
        super().call(chosen, arguments, *rest)
        self.found.update(self.simulator.reports())


def merged(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Return the sum."""
    return sum(counts, Counter())
