"""The standard streams, which may be closed, full, or without a character that is to be shown."""

import io
import os
import sys


def mend_streams() -> None:
    """Let closed streams lead nowhere, and characters that a stream lacks be shown by number.

    A closed one would give its number to the next file that is opened.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def stop_printing() -> None:
    """Let what is left to print lead nowhere: Python would try again as it ends, and say so."""
    if sys.stdout is sys.__stdout__:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
