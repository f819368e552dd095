"""How a command fails: one message on stderr, one document on stdout if asked for, a code."""

from dataclasses import dataclass
from typing import Any

import typer

from gpu_align._cli._streams import stop_printing
from gpu_align._cli._terminal import print_json, say
from gpu_align._errors import GpuAlignError, InputError

FAILED = 1
BAD_INPUT = 2


@dataclass(frozen=True)
class Failure:
    """What is said of an error.

    Attributes:
        message: the text; empty where nobody listens.
        kind: name of the error's class.
        code: the exit code.
        can_print: whether stdout works.
    """

    message: str
    kind: str
    code: int
    can_print: bool = True

    @classmethod
    def of(cls, error: BaseException) -> "Failure | None":
        """Tell what an error means; None for a bug, whose traceback is wanted."""
        kind = type(error).__name__
        if isinstance(error, GpuAlignError):
            code = BAD_INPUT if isinstance(error, InputError) else FAILED
            return cls(f"error: {error}", kind, code)
        if isinstance(error, KeyboardInterrupt):
            return cls("interrupted", kind, FAILED)
        if isinstance(error, MemoryError) or "allocate" in str(error):
            reason = (str(error) or "allocation failed").splitlines()[0]
            advice = "ask for fewer --starts, a smaller --width or a smaller --input-shape"
            return cls(f"error: not enough memory: {reason}; {advice}", kind, FAILED)
        if isinstance(error, BrokenPipeError):
            return cls("", kind, FAILED, can_print=False)
        if isinstance(error, OSError):  # of files they are errors of ours
            message = f"error: cannot print: {error.strerror or error}"
            return cls(message, kind, FAILED, can_print=False)
        return None

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        text = self.message.removeprefix("error: ")
        return {"error": text, "kind": self.kind, "exit": self.code}

    def tell(self, *, as_json: bool) -> typer.Exit:
        """Print it, and return what is to be raised."""
        if self.message:
            # As it is, for rich would take `[...]` in it for markup.
            say(self.message)
        if not self.can_print:
            stop_printing()
        elif as_json:
            print_json(self.document())
        return typer.Exit(self.code)
