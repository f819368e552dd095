"""The command line `gpu-align`: parse, call the library, print.

A command's module has its options, and imports what computes in its body: the help and the shell's
completion need no torch.
"""

from gpu_align._cli._streams import mend_streams
from gpu_align._interrupt import quitting_at_once, take_signals

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    mend_streams()
    take_signals()
    with quitting_at_once():
        from gpu_align._cli._main import app
    app()
