"""Compile the assignment kernels by NVRTC for sm_80 and sm_90; no GPU and no driver needed.

    python -m bench.compile_auction [--record]

Prints registers, shared memory and spills of each, and fails where one spills or asks for more
shared memory than a block can have. Needs cuda-bindings and the NVRTC library
(`pip install cuda-bindings nvidia-cuda-nvrtc`). --record writes results/compile_auction.json.
"""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from cuda.bindings import nvrtc

from bench.record import record
from gpu_align.kernels.auction import KERNELS, compile_options, plan, source

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Architecture -> shared memory that one block can have, in bytes."""

SIZES = {"auction_warp": 32, "auction_shared": 128, "auction_block": 4096, "auction_grid": 16384}
"""Kernel -> rows of the problem for which shared memory is shown."""


CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the launcher's options."""


def compile_kernel(kernel: int, architecture: int) -> dict[str, object]:
    """Compile one of `KERNELS` to machine code and return the row of the table.

    Raises:
        RuntimeError: NVRTC refuses the source; the message is its log.
    """
    started = time.perf_counter()
    program, text = build(kernel, f"sm_{architecture}", "--ptxas-options=-v")
    n = SIZES[KERNELS[kernel]]
    chosen = plan(100_000 if n <= 32 else 128, n, SHARED_LIMIT[architecture], 132)
    if KERNELS[chosen.kernel] != KERNELS[kernel]:
        raise RuntimeError(f"{KERNELS[kernel]} is not what the launcher takes for n = {n}")
    return {
        "kernel": KERNELS[kernel],
        "sm": architecture,
        "registers": int(re.findall(r"Used (\d+) registers", text)[0]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
        "n": n,
        "shared": chosen.shared_bytes,
        "threads": chosen.threads,
        "cubin": _checked(nvrtc.nvrtcGetCUBINSize(program)),
        "seconds": round(time.perf_counter() - started, 1),
        "log": text,
    }


def build(kernel: int, architecture: str, *options: str) -> tuple[nvrtc.nvrtcProgram, str]:
    """Compile one of `KERNELS` as CuPy does and return the program and NVRTC's log.

    Raises:
        RuntimeError: NVRTC refuses the source; the message is its log.
    """
    given = [f"--gpu-architecture={architecture}", *compile_options(kernel), *CUPY_OPTIONS]
    given = [option.encode() for option in (*given, *options)]
    program = _checked(nvrtc.nvrtcCreateProgram(source().encode(), b"auction.cu", 0, [], []))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
    log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.decode().rstrip("\0 \n")
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{KERNELS[kernel]} for {architecture}: {error.name}\n{text}")
    return program, text


def parameters(kernel: int) -> list[str]:
    """Return the types of a kernel's parameters in machine code, such as `u64` and `f64`."""
    program, _ = build(kernel, "compute_80")
    text = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program)))
    nvrtc.nvrtcGetPTX(program, text)
    entry = re.search(rf"\.entry {KERNELS[kernel]}\((.*?)\)", text.decode(), re.DOTALL)
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
    return ""


def compile_all() -> list[dict]:
    """Compile every kernel for every architecture, two at a time."""
    wanted = [(kernel, sm) for kernel in range(len(KERNELS)) for sm in SHARED_LIMIT]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: compile_kernel(*pair), wanted))


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
        record("compile_auction", kept)
    bad = sum(bool(faults(row)) for row in rows)
    if bad:
        sys.exit(f"{bad} of {len(rows)} kernels spill or need too much")


if __name__ == "__main__":
    main()
