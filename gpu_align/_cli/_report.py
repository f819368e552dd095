"""`gpu-align report`."""

from pathlib import Path
from typing import Annotated

import typer

from gpu_align._cli._options import Json
from gpu_align._cli._terminal import print_json, print_written


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json...", help="Written by `align --json-file`."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page to write.")
    ],
    title: Annotated[str, typer.Option(help="Title of the page.")] = "gpu-align report",
    as_json: Json = False,
) -> None:
    """Make one HTML page with figures from one or more results."""
    from gpu_align._align import read_result
    from gpu_align._cli._outputs import check_file
    from gpu_align._report import write_report

    check_file(out, [".html", ".htm"], reads=results)
    entries = [{"name": path.stem, **read_result(path)} for path in results]
    write_report(entries, out, title=title)
    if as_json:
        print_json({"schema": "gpu-align/report/1", "written": {"report": str(out)}})
    else:
        print_written({"report": str(out)}, "-o")
