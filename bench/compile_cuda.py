"""Compile the CUDA kernels by NVRTC for sm_80 and sm_90; no GPU and no driver needed.

    python -m bench.compile_cuda [--record]

Prints registers, shared memory and spills of each, and fails where one spills, asks for more
shared memory than a block can have, or makes NVRTC warn. Needs cuda-bindings and the NVRTC library
(`pip install cuda-bindings nvidia-cuda-nvrtc`). --record writes results/compile_cuda.json.
"""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from cuda.bindings import nvrtc

from bench.record import record
from gpu_align.kernels import auction, k_best
from gpu_align.kernels._cuda import Kernel, source

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Architecture -> shared memory that one block can have, in bytes."""

SIZES = {
    "auction_warp": 32,
    "auction_warp_64": 64,
    "auction_shared": 128,
    "auction_block": 4096,
    "auction_grid": 16384,
    "k_best": 128,
}
"""Kernel -> rows of the problem for which shared memory is shown."""

KERNELS = [*map(auction.entry_of, range(len(auction.KERNELS))), k_best.KERNEL]

CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the launcher's options."""


def launch_of(kernel: Kernel, architecture: int) -> tuple[int, int]:
    """Return the threads and the shared memory that the launcher gives a block.

    Raises:
        RuntimeError: the launcher takes another kernel for these rows.
    """
    n = SIZES[kernel.name]
    if kernel is k_best.KERNEL:
        return k_best.plan(n)
    chosen = auction.plan(100_000 if n <= 64 else 128, n, SHARED_LIMIT[architecture], 132)
    if auction.KERNELS[chosen.kernel] != kernel.name:
        raise RuntimeError(f"{kernel.name} is not what the launcher takes for n = {n}")
    return chosen.threads, chosen.shared_bytes


def compile_kernel(kernel: Kernel, architecture: int) -> dict[str, object]:
    """Compile one of `KERNELS` to machine code and return the row of the table.

    Raises:
        RuntimeError: NVRTC refuses the source; the message is its log.
    """
    started = time.perf_counter()
    program, text = build(kernel, f"sm_{architecture}", "--ptxas-options=-v")
    threads, shared_bytes = launch_of(kernel, architecture)
    return {
        "kernel": kernel.name,
        "sm": architecture,
        "registers": int(re.findall(r"Used (\d+) registers", text)[0]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
        "n": SIZES[kernel.name],
        "shared": shared_bytes,
        "threads": threads,
        "cubin": _checked(nvrtc.nvrtcGetCUBINSize(program)),
        "seconds": round(time.perf_counter() - started, 1),
        "log": text,
    }


def build(kernel: Kernel, architecture: str, *options: str) -> tuple[nvrtc.nvrtcProgram, str]:
    """Compile one of `KERNELS` as CuPy does and return the program and NVRTC's log.

    Raises:
        RuntimeError: NVRTC refuses the source; the message is its log.
    """
    given = [f"--gpu-architecture={architecture}", *kernel.options, *CUPY_OPTIONS]
    given = [option.encode() for option in (*given, *options)]
    text, file = source(kernel.file).encode(), kernel.file.encode()
    program = _checked(nvrtc.nvrtcCreateProgram(text, file, 0, [], []))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
    log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    told = log.decode().rstrip("\0 \n")
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{kernel.name} for {architecture}: {error.name}\n{told}")
    return program, told


def parameters(kernel: Kernel) -> list[str]:
    """Return the types of a kernel's parameters in machine code, such as `u64` and `f64`."""
    program, _ = build(kernel, "compute_80")
    text = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program)))
    nvrtc.nvrtcGetPTX(program, text)
    entry = re.search(rf"\.entry {kernel.name}\((.*?)\)", text.decode(), re.DOTALL)
    return re.findall(r"\.param \.(\w+)", entry[1])


def _checked(answer: tuple) -> object:
    error, value = answer
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {error.name}")
    return value


def faults(row: dict) -> str:
    """Return what is wrong with a row, or nothing."""
    if row["spills"]:
        return "spills"
    if row["registers"] * row["threads"] > 65536:
        return "more registers than a multiprocessor has"
    if row["shared"] > SHARED_LIMIT[row["sm"]]:
        return f"more shared memory than {SHARED_LIMIT[row['sm']]}"
    if "warning" in row["log"]:
        return "a warning"
    return ""


def compile_all() -> list[dict]:
    """Compile every kernel for every architecture, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: compile_kernel(*pair), product(KERNELS, SHARED_LIMIT)))


def table(rows: list[dict]) -> str:
    """Format the rows."""
    lines = ["kernel          sm registers spills     n threads shared  cubin seconds"]
    lines += [
        f"{row['kernel']:15} {row['sm']} {row['registers']:9} {row['spills']:6} {row['n']:5} "
        f"{row['threads']:7} {row['shared']:6} {row['cubin']:6} {row['seconds']:7} {faults(row)}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    rows = compile_all()
    print(table(rows))
    if "--record" in sys.argv:
        left_out = ("log", "seconds")
        kept = [{k: v for k, v in row.items() if k not in left_out} for row in rows]
        record("compile_cuda", kept)
    bad = [row for row in rows if faults(row)]
    if bad:
        print(*(row["log"] for row in bad), sep="\n")
        sys.exit(f"{len(bad)} of {len(rows)} kernels spill, need too much or make a warning")


if __name__ == "__main__":
    main()
