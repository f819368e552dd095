"""The CUDA kernels of the assignment solver, thread by thread in the simulator (`simulator/`).

`SimulatedDevice` takes the place of CuPy and the GPU like `auction_host.HostDevice`, with as many
blocks, warps and lanes as a `Layout` says, and keeps what the simulator reports.
"""

import ctypes
import re
import shutil
import subprocess
from collections import Counter
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
_PLENTY = 2**40  # bytes of shared memory

_RUNTIME_FLAGS = ("-O3", "-march=native")
# The kernels are linked without the sanitizer's library: the runtime answers the compiler's calls.
# -fno-tree-sra: a load of an int4 stays one access.
_KERNEL_FLAGS = ("-O1", "-fno-tree-sra", "-fsanitize=thread")
_KERNEL_FLAGS += ("--param", "tsan-instrument-func-entry-exit=0")


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
        teams: blocks, or for `auction_grid` teams of blocks.
        threads: of a block.
        team_blocks: blocks of a team.
    """

    kernel: str
    teams: int
    threads: int
    team_blocks: int = 1


def build(folder: Path, unit: str = "auction") -> Path:
    """Compile the simulator with the kernels of `simulator/{unit}.cpp` to a library.

    What the folder holds from a call before is not compiled again.
    """
    assert COMPILER is not None
    library, objects = folder / f"{unit}.so", [folder / f"{name}.o" for name in (*RUNTIME, unit)]
    if not library.exists():
        with ThreadPoolExecutor() as pool:
            list(pool.map(_compile, (target for target in objects if not target.exists())))
        link = (COMPILER, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects))
        _run(*link, "-o", str(library), "-ldl")
    return library


def _compile(target: Path) -> None:
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", "-g", "-fPIC", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE"]
    command += ["-Wno-unused-parameter", "-Wno-unknown-pragmas", f"-I{SOURCES}"]
    command += _RUNTIME_FLAGS if target.stem in RUNTIME else _KERNEL_FLAGS
    _run(*command, "-c", str(SIMULATOR / f"{target.stem}.cpp"), "-o", str(target))


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
        limit: int = 1_000_000_000,
        left_out: int = 0,
    ) -> None:
        """Say how the next launches run.

        Args:
            policy: which thread runs next.
            seed: of the scheduler.
            chance: that an access lets another thread run first.
            limit: a launch with more accesses is reported as endless.
            left_out: the barrier or fence, of `sites`, that does nothing.
        """
        self._options(seed, policy, chance, limit, left_out)

    def reports(self) -> list[str]:
        """Return what was found in the last launch, places as file:line."""
        room = 1 << 20
        text = ctypes.create_string_buffer(room)
        assert self.library.sim_reports(text, room) < room
        lines = [line.split("\t")[1] for line in text.value.decode().splitlines()]
        lines = [line for line in lines if not self._meets_itself(line)]
        return sorted({re.sub("@([0-9a-f]+)", self._place, line) for line in lines})

    def sites(self) -> list[int]:
        """Return all barriers and fences that the last launch has reached."""
        room = (ctypes.c_uint64 * 4096)()
        count = self.library.sim_sites(room, len(room))
        assert count < len(room)
        return room[:count]

    def caller(self, site: int) -> str:
        """Return who calls the function with a barrier, as file:line."""
        places = place_of(self.path, site - 1)
        return short(places[1:] or places)

    def _place(self, match: re.Match[str]) -> str:
        return short(place_of(self.path, int(match[1], 16)))

    def _meets_itself(self, line: str) -> bool:
        """Whether threads met at two copies that the compiler has made of one place."""
        if not line.startswith("divergent"):
            return False
        a, b = re.findall(r"(\S+) @([0-9a-f]+)", line)
        places = [place_of(self.path, int(offset, 16)) for _, offset in (a, b)]
        return a[0] == b[0] and places[0] == places[1]


@cache
def place_of(library: Path, offset: int) -> tuple[str, ...]:
    """Return an offset of a library as `file:line`, and those into which it is inlined.

    The simulator's own headers are left out.
    """
    assert ADDR2LINE is not None
    lines = _run(ADDR2LINE, "-i", "-e", str(library), hex(offset)).splitlines()
    places = [Path(line.split(" ")[0]).name for line in lines]
    return tuple(p for p in places if p.partition(":")[0] not in ("device.h", "cuda_host.h"))


def short(places: tuple[str, ...]) -> str:
    """Return a place and who calls it."""
    return " < ".join(places[:2])


class SimulatedDevice(HostDevice):
    """Runs what the launcher would give to CuPy thread by thread.

    `found` counts the reports, `sites` holds the barriers and fences that were reached.
    """

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.simulator = Simulator(library)
        self.found: Counter[str] = Counter()
        self.sites: set[int] = set()
        self.layout: Layout | None = None

    def use(self, layout: Layout) -> None:
        """Run the next launches so."""
        self.layout = layout

    def plan(self, batch: int, n: int, shared_limit: int, multiprocessors: int) -> launcher.Plan:
        """Stand in for `plan`: its kernel and memory, our blocks and threads."""
        layout = self.layout
        assert layout is not None
        limit = {"auction_grid": 0, "auction_block": PLAN(1, n, _PLENTY, 1).shared_bytes - 1}
        chosen = PLAN(batch, n, limit.get(layout.kernel, _PLENTY), multiprocessors)
        assert launcher.KERNELS[chosen.kernel] == layout.kernel, f"{n} rows: {chosen}"
        shared = chosen.shared_bytes
        if layout.kernel.startswith("auction_warp"):
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
        self.sites.update(self.simulator.sites())
