"""Where the picture of the groups puts what: modules in rows, groups in lanes beside them.

As in the graph of a version history, a lane that has ended makes room for another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpu_align._symmetry import Module, Outline, Span

MOST_ROWS = 80
MOST_TRACKS = 36
_MOST_WITH_VECTORS = 30
_IN_GAP = 0.1  # how far a lane that ends in the gap stays away from one that begins there
_FIRST_PART = 2 / 3  # of the rows, where modules in the middle are left out


@dataclass(frozen=True)
class Lane:
    """A group in the picture.

    Attributes:
        span: the group.
        family: number of its root, counted from the top.
        track: its place from the left.
        dots: rows of the modules that it lies on.
        first, last: between which rows it is drawn; between two numbers if it begins or ends
            among the modules left out.
    """

    span: Span
    family: int
    track: int
    dots: tuple[int, ...]
    first: float
    last: float


@dataclass(frozen=True)
class Layout:
    """All of the picture.

    Attributes:
        rows: modules from the top; None stands for those in the middle that are left out.
        lanes: roots in the order in which they begin, their children behind them.
        hidden: number of modules left out in the middle.
        vectors: number of modules left out because they have vectors only.
    """

    rows: tuple[Module | None, ...]
    lanes: tuple[Lane, ...]
    hidden: int
    vectors: int

    @property
    def gap(self) -> int | None:
        """The row of the modules left out in the middle."""
        return self.rows.index(None) if self.hidden else None

    @property
    def tracks(self) -> int:
        """Number of tracks that lanes are on."""
        return max((lane.track + 1 for lane in self.lanes), default=0)


def layout(outline: Outline) -> Layout:
    """Place the modules and groups of an outline.

    Left out are modules that nothing can be said of; where there are many, those whose groups lie
    on others too and that have vectors only; then those in the middle; and groups for which there
    is no track.
    """
    useful = _useful(outline)
    kept = _without_vectors(outline, useful) if len(useful) > _MOST_WITH_VECTORS else useful
    hidden = range(0)
    if len(kept) > MOST_ROWS:
        first = int(MOST_ROWS * _FIRST_PART)
        hidden = range(first, first + len(kept) - MOST_ROWS + 1)
    rows: list[Module | None] = [outline.modules[number] for number in kept]
    rows[hidden.start : hidden.stop] = [None] if hidden else []
    return Layout(
        rows=tuple(rows),
        lanes=tuple(_lanes(outline, _places(kept, hidden), gap=hidden.start)),
        hidden=len(hidden),
        vectors=len(useful) - len(kept),
    )


def _useful(outline: Outline) -> list[int]:
    """Return the modules with a group or with an axis that might have had one."""
    grouped = {module for span in outline.groups for module in span.modules}
    return [n for n, module in enumerate(outline.modules) if n in grouped or module.fixed]


def _without_vectors(outline: Outline, useful: Sequence[int]) -> list[int]:
    """Leave out modules with vectors only, unless a group lies on such modules alone."""
    needed: set[int] = set()
    for span in outline.groups:
        if all(outline.modules[module].is_vector for module in span.modules):
            needed.update(span.modules)
    return [n for n in useful if not outline.modules[n].is_vector or n in needed]


def _places(kept: Sequence[int], hidden: range) -> dict[int, int | None]:
    """Return the row of each module that is kept; None for those hidden in the middle."""
    rows: dict[int, int | None] = {}
    for number, module in enumerate(kept):
        shift = len(hidden) - 1 if hidden and number >= hidden.stop else 0
        rows[module] = None if number in hidden else number - shift
    return rows


def _lanes(outline: Outline, places: dict[int, int | None], gap: int) -> list[Lane]:
    families: dict[str, list[Lane]] = {}
    for span in outline.groups:
        rows = [places[module] for module in span.modules if module in places]
        dots = tuple(row for row in rows if row is not None)
        if dots:
            first = dots[0] if rows[0] is not None else gap + _IN_GAP
            last = dots[-1] if rows[-1] is not None else gap - _IN_GAP
            lane = Lane(span, 0, 0, dots, first, last)
            families.setdefault(span.parent or span.name, []).append(lane)
    placed: list[Lane] = []
    ends: list[float] = []  # of each track, how far down it is taken
    in_order = sorted(families.values(), key=lambda family: family[0].first)
    for number, family in enumerate(in_order):
        root = family[0]
        track = _free(ends, len(family), root.first)
        if track is not None:
            ends[track : track + len(family)] = [root.last] * len(family)
            for offset, lane in enumerate(family):
                placed.append(replace(lane, family=number, track=track + offset))
    return placed


def _free(ends: list[float], width: int, first: float) -> int | None:
    """Return the first of `width` tracks side by side that are free from a row on.

    Tracks are added as far as there may be any; None if there is no room.
    """
    for track in range(MOST_TRACKS - width + 1):
        if all(end < first for end in ends[track : track + width]):
            ends.extend([-1.0] * (track + width - len(ends)))
            return track
    return None
