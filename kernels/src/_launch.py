"""Grouped launches: many problems of different sizes in one grid, described by a device table."""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_align._errors import InputError

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
}

MAX_PROGRAMS = 2**31 - 1


class Table:
    """One grid over several problems: who owns which program, and what each problem is.

    Attributes:
        first: int64 [problems + 1, padded to 2], the first program of each problem, then the total.
        problems: int64 [problems * fields, padded to 2].
        details: int64 [any * fields, padded to 2], rows that the problems point to.
        programs: the total.
        steps: bisections that find a program's problem.
        arguments: what every grouped kernel takes first: first, problems, their number, steps.
    """

    def __init__(
        self,
        programs: Sequence[int],
        problems: Sequence[Sequence[int]],
        details: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        """Upload the table; on a GPU from pinned memory, without waiting.

        Raises:
            InputError: more programs than a grid can have.
        """
        first = [0]
        for count in programs:
            first.append(first[-1] + count)
        self.programs = first[-1]
        if self.programs > MAX_PROGRAMS:
            raise InputError(
                f"expected at most {MAX_PROGRAMS} tiles in one launch, got {self.programs}; give "
                "fewer hypotheses at once"
            )
        self.steps = len(programs).bit_length()
        parts = [first, [x for row in problems for x in row], [x for row in details for x in row]]
        for part in parts:  # of 16 bytes each, so that none asks for another compilation
            part += [0] * (len(part) % 2)
        flat = torch.tensor([x for part in parts for x in part], dtype=torch.int64, device="cpu")
        if device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)
        self.first, self.problems, self.details = flat.split([len(part) for part in parts])
        self.arguments = (self.first, self.problems, len(programs), self.steps)


def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def architecture(device: torch.device) -> int:
    """Return the compute capability of a GPU, 90 for 9.0; that for the interpreter, too."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one, so that a launch goes to its current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Launch:
    """A kernel with its grid and arguments, which costs little to launch again.

    The first launch compiles, or finds what has been compiled; the others go to Triton's launcher
    directly, with no more looking at types, options or the cache.
    """

    def __init__(
        self,
        kernel: triton.JITFunction,
        programs: int,
        arguments: Sequence[Tensor | int | float],
        constants: Mapping[str, object],
        options: Mapping[str, object],
        device: torch.device,
    ) -> None:
        """Keep what a launch needs; tensors stay alive.

        Args:
            kernel: the jitted function.
            programs: of the grid.
            arguments: in the kernel's order, after those that each launch is given.
            constants: of the compilation, by name, in the kernel's order.
            options: of the compilation: num_warps and the like.
            device: of the tensors.
        """
        self._kernel, self._grid, self._device = kernel, (programs, 1, 1), device
        self._arguments, self._constants, self._options = arguments, constants, options
        # Triton's launcher takes addresses, and asks the driver about each tensor.
        plain = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
        self._everything = (*plain, *constants.values())
        self._compiled: Callable[..., None] | None = None

    def __call__(self, *leading: Tensor | int) -> None:
        """Launch on the current stream of the device, without waiting.

        Args:
            leading: the kernel's first arguments; addresses are multiples of 16, integers such
                that no variant is compiled for their values.
        """
        if self._compiled is None:
            with on_device(self._device):
                compiled = self._kernel[self._grid](
                    *leading, *self._arguments, **self._constants, **self._options
                )
            if self._device.type == "cuda":
                self._compiled = compiled[self._grid]
        elif torch.cuda.current_device() == self._device.index:
            self._compiled(*leading, *self._everything)
        else:
            with on_device(self._device):
                self._compiled(*leading, *self._everything)


@triton.jit
def locate(
    first_ptr: tl.tensor,
    problems: tl.tensor,
    steps: tl.tensor,
    program: tl.tensor,
) -> tl.tuple:
    """Return the problem that owns a program, and the program's number within it."""
    low = program * 0
    high = low + problems
    for _ in range(steps):
        middle = (low + high) // 2
        below = tl.load(first_ptr + middle) <= program
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low, program - tl.load(first_ptr + low)
