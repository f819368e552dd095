"""Compile every variant of the Triton kernels ahead of time for sm_80 and sm_90; no GPU needed.

    python -m bench.compile_kernels [--record] [--sample] [NAME ...]

Prints registers, shared memory and spills of each, and fails where one spills more than
`SPILL_LIMIT` or needs more shared memory than a block can have. NAME keeps the kernels whose name
begins so; --sample compiles one variant of each kernel, here and for the newest architecture;
--record writes results/compile_kernels.json. Every core compiles: no two variants are alike, and
what both architectures share (the front end) is a fourteenth of the time.
"""

import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.record import record
from gpu_align.kernels import moves
from gpu_align.kernels._launch import TRITON_DTYPES
from gpu_align.kernels._tiles import LARGE, TILES, Tile
from gpu_align.kernels.row_distance import row_distance_kernel
from gpu_align.kernels.sinkhorn import RESIDENT, resident_kernel

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Architecture -> shared memory that one block can have, in bytes."""

SPILL_LIMIT = {80: 32, 90: 16}
"""Architecture -> bytes that a thread may spill: tiles are chosen for sm_90."""


@dataclass(frozen=True)
class Variant:
    """One compilation.

    Attributes:
        kernel: the jitted function.
        label: what distinguishes it.
        types: argument -> type; the other arguments are constants.
        constants: argument -> value.
        options: num_warps and the like.
        architecture: the first that is asked for it.
    """

    kernel: triton.JITFunction
    label: str
    types: dict[str, str]
    constants: dict[str, object]
    options: dict[str, object]
    architecture: int = 80


def variants() -> Iterator[Variant]:
    """Yield all that the launchers can ask for."""
    yield from _row_variants()
    yield from _move_variants()
    yield from _sinkhorn_variants()


def _row_variants() -> Iterator[Variant]:
    types = {"problem": "*i64", "term_ptr": "*i64", "part_ptr": "*fp32", "arrived_ptr": "*i32"}
    for planes, tiles in TILES.items():
        for tile in tiles:
            dtype = torch.bfloat16 if planes > 1 else torch.float32
            constants = {"DTYPE": TRITON_DTYPES[dtype], "PLANES": planes, **tile.constants()}
            label = row_label(planes, tile)
            least = 90 if tile.rows >= LARGE else 80
            yield Variant(row_distance_kernel, label, types, constants, tile.options(), least)


def row_label(planes: int, tile: Tile) -> str:
    """Return the weights and the tile of a compilation."""
    size = f"{tile.rows}x{tile.columns}x{tile.depth}"
    return f"{planes} bfloat16 {size}" if planes > 1 else f"float32 {size} {tile.precision}"


def _move_variants() -> Iterator[Variant]:
    types = dict.fromkeys(("batch", "groups", "number", "size", "neighbours"), "i32")
    types |= {"chosen_ptr": "*u8", "stale_ptr": "*u8", "similarity_ptr": "*fp32"}
    types |= {"signed_ptr": "*fp32", "perm_ptr": "*i64", "signed_perm_ptr": "*i64"}
    types |= {name: "*fp64" for name in ("col_dual_ptr", "found_dual_ptr", "objective_ptr")}
    types |= {"tolerance_ptr": "*fp64", "found_ptr": "*i64", "status_ptr": "*i64"}
    types |= {"active_ptr": "*i64", "code_ptr": "*i64", "neighbours_ptr": "*i64"}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    yield Variant(moves.select_kernel, "", types, {"BLOCK": moves.HYPOTHESES}, options)
    for signed in (False, True):
        for block, warps in (*moves.BLOCKS.items(), moves.LARGEST):
            label = f"{'signed' if signed else 'plain'}, {block} at a time"
            constants = {"SIGNED": signed, "BLOCK": block}
            options = {"num_warps": warps, "enable_fp_fusion": True}
            yield Variant(moves.accept_kernel, label, types, constants, options)


def _sinkhorn_variants() -> Iterator[Variant]:
    numbers = {"first_ptr": "*i64", "group_ptr": "*i64", "groups": "i32", "steps": "i32"}
    numbers |= {"temperature_ptr": "*fp32", "damping": "fp32", "iterations": "i32"}
    for block, warps in RESIDENT.items():
        options = {"num_warps": warps, "enable_fp_fusion": True}
        yield Variant(resident_kernel, f"n <= {block}", numbers, {"BLOCK": block}, options)


@functools.cache
def all_variants() -> tuple[Variant, ...]:
    """Return `variants`, made once per process."""
    return tuple(variants())


def compile_variant(number: int, architecture: int) -> dict[str, object]:
    """Compile one of `all_variants` for `sm_<architecture>` and return the row of the table.

    Takes a number, because a jitted function cannot be sent to another process.
    """
    variant = all_variants()[number]
    types = {name: variant.types.get(name, "constexpr") for name in variant.kernel.arg_names}
    divisible = [["tt.divisibility", 16]]
    pointers = [n for n, name in enumerate(types) if types[name].startswith("*")]
    attributes = {(n,): divisible for n in pointers}
    source = ASTSource(variant.kernel, types, variant.constants, attributes)
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    log, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(log):
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options=variant.options)
    text = log.getvalue()
    return {
        "kernel": variant.kernel.__name__,
        "variant": variant.label,
        "sm": architecture,
        "registers": int(re.search(r"Used (\d+) registers", text)[1]),
        "shared": compiled.metadata.shared,
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
        "warps": compiled.metadata.num_warps,
        "stages": variant.options.get("num_stages"),
        "seconds": round(time.perf_counter() - started, 2),
    }


def compile_sample(numbers: Sequence[int]) -> Iterator[dict]:
    """Compile the first variant of each kernel among these for the newest architecture."""
    first = {all_variants()[n].kernel.__name__: n for n in reversed(numbers)}
    for number in reversed(first.values()):
        yield compile_variant(number, max(SHARED_LIMIT))


def compile_all(numbers: Sequence[int]) -> Iterator[dict]:
    """Compile these of `all_variants` for every architecture; yields the rows in order."""
    wanted = itertools.product(numbers, SHARED_LIMIT)
    jobs = [(n, sm) for n, sm in wanted if all_variants()[n].architecture <= sm]
    workers = min(os.cpu_count() or 1, len(jobs))
    # Spawned, not forked: torch and LLVM have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(compile_variant, *zip(*jobs, strict=True))


def faults(row: dict) -> str:
    """Return what is wrong with a row, or nothing."""
    if row["spills"] > SPILL_LIMIT[row["sm"]]:
        return "spills"
    if row["shared"] > SHARED_LIMIT[row["sm"]]:
        return f"more shared memory than {SHARED_LIMIT[row['sm']]}"
    return ""


def main() -> None:
    names = tuple(name for name in sys.argv[1:] if not name.startswith("--")) or ("",)
    chosen = [n for n, v in enumerate(all_variants()) if v.kernel.__name__.startswith(names)]
    if not chosen:
        sys.exit(f"no kernel's name begins with {' or '.join(names)}")
    print(f"{'kernel':22} {'variant':36} sm  warps stages registers  shared spills seconds")
    rows = []
    for row in (compile_sample if "--sample" in sys.argv else compile_all)(chosen):
        rows.append(row)
        print(
            f"{row['kernel']:22} {row['variant']:36} {row['sm']} {row['warps']:5} "
            f"{row['stages'] or '':6} {row['registers']:9} {row['shared']:7} "
            f"{row['spills']:6} {row['seconds']:7} {faults(row)}",
            flush=True,
        )
    if "--record" in sys.argv:
        record(
            "compile_kernels", [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        )
    bad = [row for row in rows if faults(row)]
    if bad:
        sys.exit(f"{len(bad)} of {len(rows)} variants spill or need too much shared memory")


if __name__ == "__main__":
    main()
