"""`gpu-align env`."""

from dataclasses import asdict

from gpu_align._cli._options import Json
from gpu_align._cli._terminal import columns, console, facts, print_json


def env(as_json: Json = False) -> None:
    """Show versions, and what this machine can compute on."""
    from gpu_align._device import backends, versions

    found = backends()
    if as_json:
        document = {"versions": versions(), "backends": [asdict(backend) for backend in found]}
        print_json({"schema": "gpu-align/env/1", **document})
        return
    table = columns("backend", "usable", "details")
    for backend in found:
        table.add_row(backend.name, "yes" if backend.available else "no", backend.detail)
    screen = console()
    screen.print(facts(versions()))
    screen.print(table)
