"""The architecture: rooms import lower floors only, and are entered by their faces only."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gpu_align"

FLOORS = (
    ("_cli",),
    ("learn", "_zoo", "_report"),
    ("_merge",),
    ("_align",),
    ("_proof",),
    ("_search",),
    ("_problem", "_network"),
    ("_symmetry",),
    ("_assignment", "_device", "_checkpoint"),
    ("kernels",),
    ("_process", "_interrupt"),
    ("_errors",),
    ("_status",),
)
"""From the roof down. Rooms of one floor do not know each other; everything may use the errors."""

FRONT_DOOR = ("__init__", "__main__")
"""What only names the rooms."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield each module with the room that it lies in."""
    for folder, parent in ((PACKAGE, None), (PACKAGE.parent / "kernels" / "src", "kernels")):
        for path in sorted(folder.rglob("*.py")):
            yield parent or path.relative_to(folder).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the dotted name of each import from this package, lazy ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "gpu_align":
                names = [f"gpu_align.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "gpu_align" and "." in name:
                yield node.lineno, name.split(".")[1:]


@functools.cache
def crossing() -> list[tuple[str, str, list[str]]]:
    """Return for each import from another room where it comes to, its place, what is imported."""
    return [
        (room, f"{path.relative_to(PACKAGE.parent)}:{line}", name)
        for room, path in modules()
        for line, name in imports(path)
        if name[0] != room and room not in FRONT_DOOR
    ]


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in modules()} <= set(FLOOR) | set(FRONT_DOOR)


def test_imports_go_down() -> None:
    assert len(crossing()) > 100
    up = [place for room, place, name in crossing() if FLOOR[name[0]] <= FLOOR[room]]
    assert up == []


def test_rooms_are_entered_by_their_faces() -> None:
    behind = [place for _, place, name in crossing() if any(p.startswith("_") for p in name[1:])]
    assert behind == []
