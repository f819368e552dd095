"""The command line `gpu-align`: parse, call the library, print."""

from gpu_align._cli._main import app, main

__all__ = ["app", "main"]
