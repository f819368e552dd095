"""One probe of what this machine offers, and the one place that chooses a device."""

import importlib.metadata
import platform
from dataclasses import dataclass
from functools import lru_cache

import torch

from gpu_align._errors import InputError, UnavailableError

DEVICES = ("auto", "cpu", "cuda")

_TRITON = ("triton", "row-distance and annealing kernels on the GPU", "cuda")

_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


@dataclass(frozen=True)
class Backend:
    """Something that alignment can run on or with.

    Attributes:
        name: of the library or device.
        available: whether it can be used here.
        detail: its version, or why it cannot be used and what to do.
    """

    name: str
    available: bool
    detail: str


def backends() -> tuple[Backend, ...]:
    """Probe the libraries and devices; nothing heavy is imported."""
    return (
        Backend("scipy", True, f"SciPy {version('scipy')}: assignment on the CPU"),
        _library("lapx", "assignment on the CPU, mostly faster than SciPy", "fast"),
        _cuda(),
        _on_gpu(_library(*_TRITON)),
        _on_gpu(_cupy()),
    )


@dataclass(frozen=True)
class Engine:
    """What computes a search.

    Attributes:
        device: where its tensors lie.
        kernels: whether the Triton kernels compute costs and annealing steps; else torch does.
        waits: whether assignments are solved on the host. If not, they are solved on the device
            and nothing is read back within a sweep.
        reason: why this one.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    kernels: bool = False
    waits: bool = True
    reason: str = "asked for"

    def __str__(self) -> str:
        return f"{self.device.type} ({self.reason})"


CPU = Engine()
"""Torch and SciPy or lapx."""


def choose_engine(device: str | torch.device) -> Engine:
    """Return what to compute with, and why.

    "auto" takes the CUDA device where there is one and CuPy is installed, else the CPU. A
    `torch.device` and a number, as in "cuda:0", are taken too; it must be that of torch's current
    device.

    Raises:
        InputError: `device` is not one of `DEVICES`.
        UnavailableError: an explicit choice cannot be kept.
    """
    named, _, number = str(device).partition(":")
    is_device = isinstance(device, str | torch.device) and named in DEVICES
    if not is_device or (number and (named == "auto" or not number.isdecimal())):
        raise InputError(f"expected a device among {DEVICES}, got {device!r}")
    device = named
    if device == "cpu":
        return CPU
    cuda, cupy, triton = _cuda(), _on_gpu(_cupy()), _on_gpu(_library(*_TRITON))
    missing = next((backend for backend in (cuda, cupy) if not backend.available), None)
    if missing is not None:
        why = f"{missing.name}: {missing.detail}"
        if device == "cuda":
            raise UnavailableError(
                f"device 'cuda' was asked for, but cannot be used. {why}. Or use --device cpu"
            )
        return Engine(reason=f"auto: {missing.name} cannot be used here, see gpu-align env")
    current = torch.cuda.current_device()
    if number and int(number) != current:
        raise UnavailableError(
            f"device 'cuda:{number}' was asked for, but torch's current device is cuda:{current}; "
            f"call torch.cuda.set_device({number}) before, or set CUDA_VISIBLE_DEVICES={number}, "
            "and pass 'cuda'"
        )
    products = (
        "Triton kernels" if triton.available else f"torch products, as triton is {triton.detail}"
    )
    asked = "asked for" if device == "cuda" else "auto"
    return Engine(
        torch.device("cuda", current),
        kernels=triton.available,
        waits=False,
        reason=f"{asked}: {cuda.detail}, {products}",
    )


@lru_cache(maxsize=64)
def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("gpu-align", "torch", "numpy", "scipy", "lapx", "triton", *_CUPY)
    found = {name: version(name) for name in packages}
    return {"python": platform.python_version()} | {k: v for k, v in found.items() if v}


def _library(name: str, purpose: str, extra: str) -> Backend:
    found = version(name)
    if found is None:
        return Backend(name, False, f"not installed: pip install 'gpu-align[{extra}]' ({purpose})")
    return Backend(name, True, f"{name} {found}: {purpose}")


def _cupy() -> Backend:
    for package in _CUPY:
        if version(package):
            return Backend("cupy", True, f"{package} {version(package)}: assignment on the GPU")
    remedy = "pip install 'gpu-align[cuda]', or 'gpu-align[cuda12]' on CUDA 12"
    return Backend("cupy", False, f"not installed: {remedy} (assignment on the GPU)")


def _cuda() -> Backend:
    if not torch.backends.cuda.is_built():
        remedy = "install a CUDA build (https://pytorch.org/get-started)"
        return Backend("cuda", False, f"torch {torch.__version__} is for the CPU; {remedy}")
    if not torch.cuda.is_available():
        return Backend("cuda", False, "torch finds no CUDA device; check the driver (nvidia-smi)")
    return Backend("cuda", True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def _on_gpu(library: Backend) -> Backend:
    """Return a library of the GPU as usable only where there is one."""
    if library.available and not _cuda().available:
        detail = f"installed ({library.detail}), but needs the CUDA device above"
        return Backend(library.name, False, detail)
    return library
