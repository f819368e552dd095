"""The reference of the command line, from the program itself."""

from collections.abc import Iterable, Iterator
from typing import Any

import typer.main

from gpu_align._cli._main import app

PROGRAM = "gpu-align"


def reference() -> str:
    """Return the reference of all commands in Markdown."""
    return "\n\n".join(_commands(PROGRAM, typer.main.get_command(app)))


def _commands(name: str, command: Any) -> Iterator[str]:
    """Yield the parts of a command, or of all commands of a group."""
    if hasattr(command, "commands"):
        for inner, each in command.commands.items():
            yield from _commands(f"{name} {inner}", each)
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([name, "[OPTIONS]", *map(_usage, arguments)])
    yield f"## {name.removeprefix(f'{PROGRAM} ')}"
    yield f"```text\n{usage}\n```"
    yield command.help or ""
    if arguments:
        yield _table("Arguments", ((f"`{_name(each)}`", each.help) for each in arguments))
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        if not option.hidden:
            panels.setdefault(option.rich_help_panel or "Options", []).append(_option(option))
    for panel, rows in panels.items():
        yield _table(panel, rows)


def _name(argument: Any) -> str:
    return argument.metavar or argument.display_name_raw.upper()


def _usage(argument: Any) -> str:
    """Return an argument as a usage line has it."""
    name = f"{_name(argument)}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _option(option: Any) -> tuple[str, str]:
    """Return the names of an option, and what it does, with its default."""
    value = "" if option.is_flag else f" {_name(option)}"
    first, *others = (*option.opts, *option.secondary_opts)
    names = ", ".join(f"`{name}`" for name in (f"{first}{value}", *others))
    has_default = not callable(option.default) and option.default not in (None, "", False)
    default = f" Default: `{option.default}`." if has_default else ""
    return names, f"{option.help or ''}{default}"


def _table(title: str, rows: Iterable[tuple[str, str | None]]) -> str:
    cells = "\n".join(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)
    return f"| {title} | |\n|---|---|\n{cells}"


def _cell(text: str | None) -> str:
    """Return a text that fits a cell: on one line, its bars escaped."""
    return " ".join((text or "").split()).replace("|", "\\|")
