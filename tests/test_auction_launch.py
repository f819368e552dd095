"""How the CUDA kernels are handed to CuPy: what of it can be proved without a GPU."""

import contextlib
import ctypes
import re
import sys
import types

import pytest
import torch

from gpu_align import backends
from gpu_align._assignment import AssignmentProblem, AutoAssignment
from gpu_align._errors import UnavailableError
from gpu_align.kernels import _cuda, k_best
from gpu_align.kernels import auction as launcher
from gpu_align.kernels.auction import KERNELS, auction

cupy = pytest.importorskip("cupy")

STREAM = 4321
SHAPES = {0: (3, 20), 1: (3, 70), 2: (200, 260), 3: (2, 2048), 4: (3, 40)}
"""Kernel -> batch and rows for which the launcher takes it, on a device as `limits` says."""


def limits(device: torch.device) -> tuple[int, int]:
    return 227 * 1024, 132


class Recorder:
    """Stands in for CuPy's device and kernels; its streams are CuPy's own."""

    def __init__(self) -> None:
        self.launches: list[dict] = []
        self.devices: list[int] = []
        self.streams: list[int] = []
        self.kernels: list[RecordedKernel] = []
        self.RawKernel = self.compile
        self.blocks_each = 1
        driver = types.SimpleNamespace(
            occupancyMaxActiveBlocksPerMultiprocessor=lambda *asked: self.blocks_each
        )
        self.cuda = types.SimpleNamespace(Device=self.device, Stream=self, driver=driver)

    @contextlib.contextmanager
    def device(self, index):
        self.devices.append(index)
        yield
        self.devices.pop()

    @contextlib.contextmanager
    def from_external(self, stream):
        self.streams.append(cupy.cuda.Stream.from_external(stream).ptr)
        yield
        self.streams.pop()

    def compile(self, code, name, **options):
        self.kernels.append(RecordedKernel(self, code, name, options))
        return self.kernels[-1]


class RecordedKernel:
    def __init__(self, recorder, code, name, options) -> None:
        self.recorder, self.code, self.name, self.options = recorder, code, name, options
        self.granted: list[int] = []
        self.kernel = types.SimpleNamespace(ptr=0)

    def __setattr__(self, name, value) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.granted.append(value)
        else:
            super().__setattr__(name, value)

    def __call__(self, grid, block, arguments, *, shared_mem) -> None:
        self.recorder.launches.append(
            {
                "kernel": self.name,
                "grid": grid,
                "block": block,
                "arguments": arguments,
                "shared_mem": shared_mem,
                "device": self.recorder.devices[-1],
                "stream": self.recorder.streams[-1],
            }
        )


@pytest.fixture
def recorder(monkeypatch):
    """The launcher as it is, above a CuPy that only writes down what it is given."""
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "cupy", recorder)
    for module in (launcher, k_best):
        monkeypatch.setattr(module, "_DEVICE", "cpu")
        monkeypatch.setattr(module, "_limits", limits)
    current = types.SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    _cuda._compiled.cache_clear()
    yield recorder
    _cuda._compiled.cache_clear()


def signature(kernel: int) -> list[str]:
    """Return the names of a kernel's parameters, from its source."""
    text = _cuda.source("auction.cu")
    (shared,) = re.findall(r"#define PARAMETERS((?:.*\\\n)+.*)\n", text)
    (declared,) = re.findall(rf"{KERNELS[kernel]}\((PARAMETERS.*?)\) {{", text)
    shared = shared.replace("\\", " ")
    return re.findall(r"(\w+)\s*(?:,|$)", declared.replace("PARAMETERS", shared).strip())


@pytest.mark.parametrize("kernel", SHAPES, ids=lambda k: KERNELS[k])
def test_arguments_go_by_the_names_of_the_kernel(recorder, kernel):
    batch, n = SHAPES[kernel]
    cost = torch.zeros(batch, n, n, dtype=torch.float64)
    sizes = torch.full((batch,), n)
    old = torch.zeros(batch, n, dtype=torch.float64)
    col = torch.zeros(batch, n, dtype=torch.int64)
    result = auction(cost, maximize=True, sizes=sizes, warm_start=(old, col), max_rounds=77)
    (launch,) = recorder.launches
    chosen = launcher.plan(batch, n, *limits(cost.device))
    named = dict(zip(signature(kernel), launch["arguments"], strict=True))
    given = {"cost": cost, "sizes": sizes, "old_dual": old, "old_col": col}
    given |= vars(result)
    given |= {"gap": given.pop("duality_gap"), "status": given.pop("status_codes")}
    for name, tensor in given.items():
        assert named.pop(name) == tensor.data_ptr(), name
    if kernel in (2, 3):
        assert named.pop("scratch") % 8 == 0
    if kernel == 3:
        assert named.pop("arrivals") % 8 == 0
    own = {
        0: {"bytes": chosen.team_bytes},
        1: {},
        2: {"integers": chosen.team_bytes // 4},
        3: {"bytes": chosen.team_bytes, "blocks": chosen.team_blocks},
        4: {"bytes": chosen.team_bytes},
    }[kernel]
    assert named == {"wide": 1, "b": batch, "n": n, "sign": -1.0, "limit": 77, **own}


@pytest.mark.parametrize("kernel", SHAPES, ids=lambda k: KERNELS[k])
def test_the_launch_is_the_plan(recorder, kernel):
    batch, n = SHAPES[kernel]
    cost = torch.zeros(batch, n, n)
    for _ in range(2):
        auction(cost)
    chosen = launcher.plan(batch, n, *limits(cost.device))
    assert chosen.kernel == kernel
    (compiled,) = recorder.kernels  # once, though launched twice
    assert compiled.code == _cuda.source("auction.cu")
    assert compiled.options["options"] == launcher.compile_options(kernel)
    # Blocks that wait for each other must all be resident, which only such a launch promises.
    cooperative = KERNELS[kernel] == "auction_grid"
    assert compiled.options["enable_cooperative_groups"] == cooperative
    beyond = chosen.shared_bytes > 48 * 1024
    assert compiled.granted == [chosen.shared_bytes] * beyond
    for launch in recorder.launches:
        assert launch["kernel"] == KERNELS[kernel]
        assert launch["grid"] == (chosen.blocks,)
        assert launch["block"] == (chosen.threads,)
        assert launch["shared_mem"] == chosen.shared_bytes
        assert (launch["device"], launch["stream"]) == (cost.device.index, STREAM)
    assert len(recorder.launches) == 2


def test_the_arguments_of_k_best(recorder):
    """By name, on the current stream, with as much shared memory as it needs."""
    cost = torch.rand(3, 100, 100, dtype=torch.float64).mT
    best = torch.arange(100).repeat(3, 1)
    col_ind, total = k_best.rank_matchings(cost, best, 7)
    (launch,) = recorder.launches
    text = _cuda.source("k_best.cu")
    (declared,) = re.findall(r"k_best\((const double\*.*?)\) {", text, re.DOTALL)
    named = dict(zip(re.findall(r"(\w+)(?:,|$)", declared), launch["arguments"], strict=True))
    given = {"cost": cost.mT, "best": best, "col_ind": col_ind, "total": total}
    for name, tensor in given.items():
        assert named.pop(name) == tensor.data_ptr(), name
    assert len({named.pop(name) for name in ("child", "banned", "last_free")}) == 3
    assert named == {"b": 3, "n": 100, "k": 7}
    threads, shared_bytes = k_best.plan(100)
    assert (launch["grid"], launch["block"]) == ((3,), (threads,))
    assert (launch["device"], launch["stream"]) == (cost.device.index, STREAM)
    (compiled,) = recorder.kernels
    assert launch["shared_mem"] == shared_bytes
    assert compiled.granted == [shared_bytes]
    assert compiled.options["options"] == k_best.KERNEL.options


def test_blocks_that_wait_for_each_other_must_fit(recorder):
    cost = torch.zeros(*SHAPES[3], SHAPES[3][1])
    auction(cost)
    recorder.blocks_each = 0
    with pytest.raises(UnavailableError, match=r"expected room for \d+ blocks .* has room for 0"):
        auction(cost)
    auction(torch.zeros(3, 20, 20))  # its blocks do not wait


def test_shared_memory_is_granted_when_more_is_needed(recorder):
    for n in (70, 140, 130, 200):
        auction(torch.zeros(3, n, n))
    (compiled,) = recorder.kernels
    wanted = [launch["shared_mem"] for launch in recorder.launches]
    assert compiled.granted == [wanted[1], wanted[3]]


def test_cupy_takes_the_kernels_as_they_are_given():
    _cuda._compiled.cache_clear()
    for kernel, name in enumerate(KERNELS):
        compiled, _ = _cuda._compiled(launcher.entry_of(kernel), 0)
        assert isinstance(compiled, cupy.RawKernel)
        assert (compiled.name, compiled.options) == (name, launcher.compile_options(kernel))
        assert compiled.enable_cooperative_groups == (name == "auction_grid")
    _cuda._compiled.cache_clear()


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(k, id=KERNELS[k], marks=[] if k == 0 else pytest.mark.slow) for k in SHAPES],
)
def test_cupy_packs_the_arguments_as_the_kernel_reads_them(recorder, kernel):
    """Python's int and float become 8 bytes each, where the machine code has an u64 or an f64."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and nvidia-cuda-nvrtc")
    from cupy._core._scalar import CScalar

    from bench.compile_cuda import parameters

    auction(torch.zeros(*SHAPES[kernel], SHAPES[kernel][1]))
    (launch,) = recorder.launches
    kinds = {"u64": ctypes.c_int64, "f64": ctypes.c_double}
    for kind, argument in zip(
        parameters(launcher.entry_of(kernel)), launch["arguments"], strict=True
    ):
        packed = CScalar(argument)
        assert packed.dtype.itemsize == 8
        assert kinds[kind].from_address(packed.ptr).value == argument


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.filterwarnings("error")
def test_cupy_without_a_device_is_named_and_not_used():
    (found,) = (backend for backend in backends() if backend.name == "cupy")
    assert not found.available
    assert re.match(r"installed \(cupy.* \d.*\), but needs the CUDA device above", found.detail)
    solver, reason = AutoAssignment().select(AssignmentProblem(torch.zeros(2, 5, 5)))
    assert solver.name != "auction"
    assert "CuPy" not in reason
