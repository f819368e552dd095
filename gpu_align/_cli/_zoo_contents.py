"""What `zoo inspect` prints."""

from gpu_align._cli._terminal import columns, console, print_json, print_line, warn
from gpu_align._zoo import ZooContents

_SHOWN = 20


def tell_contents(source: str, found: ZooContents, *, as_json: bool) -> None:
    """Print what a zoo consists of."""
    if as_json:
        print_json({"source": source, **found.to_json()})
        return
    runs = f", of {found.runs} training runs" if found.runs else ""
    print_line(f"{source}: {found.models} models{runs}")
    numbers = ["models", "parameters"]
    table = columns("family", *numbers, "symmetries", numbers=numbers)
    for name, family in found.families.items():
        size = str(family["parameters"]) if "parameters" in family else name.partition("p")[0]
        table.add_row(name, str(family["models"]), size, str(family["symmetries"]))
    console().print(table)
    for name, (kind, reason) in list(found.failed.items())[:_SHOWN]:
        warn(f"{name} is {kind}: {reason}")
    if len(found.failed) > _SHOWN:
        warn(f"{len(found.failed) - _SHOWN} more cannot be used; --json names them all")
    if found.others:
        print_line(f"{len(found.others)} other files, such as {found.others[0]}")
