"""The picture of the groups: one row per module, one lane per group, as in a version history."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from gpu_align._report._figures import BEFORE, INK, QUIET, STAGES, WIDTH, drawable
from gpu_align._report._lanes import Lane, Layout
from gpu_align._symmetry import Module

ROW = 0.185  # inches
_MARGIN = 0.08
_SPACING = (0.07, 0.24)  # of tracks, the least and the most
_LANES = 2.5  # the most that all lanes take
_NAME = 2.9  # the most that a module's name takes
_GAP = 0.14  # between lanes, names and labels
_SIZE = 7.5  # of letters, points
_LINE, _THIN = 2.2, 1.1


@dataclass(frozen=True)
class _Label:
    """Words of one colour."""

    text: str
    color: str


def lane_chart(layout: Layout) -> Figure:
    """Draw a layout: lanes on the left, then the names of modules, then the groups that begin.

    Horizontal lines join the groups that meet in a module. Lanes of groups inside another one are
    thin, dots of signed or scaled groups are hollow, a grey square stands for fixed axes.
    """
    height = 2 * _MARGIN + ROW * len(layout.rows)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)  # units of the axes are inches, from the top left
    axes.set_ylim(height, 0)
    spacing = min(max(_LANES / max(layout.tracks, 1), _SPACING[0]), _SPACING[1])
    _draw_meetings(axes, layout, spacing)
    for lane in layout.lanes:
        _draw_lane(axes, lane, layout.gap, spacing)
    left = _MARGIN + spacing * layout.tracks + _GAP
    names = ["" if module is None else _shortened(module.name) for module in layout.rows]
    right = left + _GAP + max(map(_width, names), default=0) + _GAP
    for row, module in enumerate(layout.rows):
        if module is None:
            _write(axes, left + _GAP, row, _Label(f"⋯  {layout.hidden} more", QUIET))
            continue
        if module.fixed:
            axes.plot(left, _y(row), marker="s", markersize=3, color=QUIET)
        _write_name(axes, left + _GAP, row, names[row], names[row - 1] if row else "")
        _write_labels(axes, right, row, [*_begins(layout, row, module), *_fixed(module)])
    return figure


def _y(row: float) -> float:
    return _MARGIN + ROW * (row + 0.5)


def _x(lane: Lane, spacing: float) -> float:
    return _MARGIN + spacing * (lane.track + 0.5)


def _color(lane: Lane) -> str:
    return STAGES[lane.family % len(STAGES)]


def _draw_meetings(axes: Axes, layout: Layout, spacing: float) -> None:
    """Join the lanes that have a dot in one row."""
    places: list[list[float]] = [[] for _ in layout.rows]
    for lane in layout.lanes:
        for row in lane.dots:
            places[row].append(_x(lane, spacing))
    for row, met in enumerate(places):
        if len(met) > 1:
            ends = [min(met), max(met)]
            axes.plot(ends, [_y(row)] * 2, color=BEFORE, linewidth=_THIN, zorder=1)


def _draw_lane(axes: Axes, lane: Lane, gap: int | None, spacing: float) -> None:
    is_root = lane.span.parent is None
    color, x, scale = _color(lane), _x(lane, spacing), min(1, spacing / 0.13)
    width = (_LINE if is_root else _THIN) * scale
    for first, last, line in _pieces(lane, gap):
        axes.plot([x, x], [_y(first), _y(last)], line, color=color, linewidth=width)
    axes.plot(
        [x] * len(lane.dots),
        [_y(row) for row in lane.dots],
        linestyle="none",
        marker="o",
        markersize=(5.2 if is_root else 4) * scale,
        markerfacecolor="white" if lane.span.gauge else color,
        markeredgecolor=color,
        markeredgewidth=1.2 * scale,
        zorder=3,
    )


def _pieces(lane: Lane, gap: int | None) -> Iterator[tuple[float, float, str]]:
    """Yield beginning, end and style of the pieces of a lane: dotted past modules left out."""
    if gap is None or not lane.first < gap + 0.5 or not lane.last > gap - 0.5:
        yield lane.first, lane.last, "-"
        return
    above, below = max(lane.first, gap - 0.5), min(lane.last, gap + 0.5)
    for first, last, line in (
        (lane.first, above, "-"),
        (above, below, ":"),
        (below, lane.last, "-"),
    ):
        if first < last:
            yield first, last, line


def _begins(layout: Layout, row: int, module: Module) -> Iterator[_Label]:
    """Yield the groups that begin in a row: size, name if it is another one, gauge."""
    for lane in layout.lanes:
        if lane.dots[0] != row:
            continue
        span = lane.span
        size = f"{span.size}" if span.parent is None else f"{span.size} in each"
        size += ", fixed" if span.fixed else ""
        if span.name != module.name:
            size += f" {_own_part(span.name, module.name)}"
        yield _Label(f"{size}, {span.gauge}" if span.gauge else size, _color(lane))


def _own_part(name: str, module: str) -> str:
    """Return the part of a group's name that the module's name does not say.

    Of a group named after a module around this one, that is the last part of its name.
    """
    if name.startswith(module):
        return _shortened(name.removeprefix(module))
    if module.startswith(f"{name}."):
        return _shortened(name.rpartition(".")[2])
    shared = _shared_parts(name, module)
    return _shortened(f"…{name.removeprefix(shared)}" if shared else name)


def _shared_parts(name: str, other: str) -> str:
    """Return the beginning that two names share, up to a dot and with it."""
    pairs = zip(name.split(".")[:-1], other.split("."), strict=False)
    return "".join(f"{part}." for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _fixed(module: Module) -> Iterator[_Label]:
    if module.fixed:
        yield _Label(f"fixed: {drawable(', '.join(module.fixed))}", QUIET)


def _write_name(axes: Axes, x: float, row: int, name: str, before: str) -> None:
    """Write a module's name; what it shares with the one above it is quiet."""
    shared = _shared_parts(name, before)
    if shared:
        _write(axes, x, row, _Label(shared, QUIET))
    _write(axes, x + _width(shared), row, _Label(name.removeprefix(shared), INK))


def _write_labels(axes: Axes, x: float, row: int, labels: Sequence[_Label]) -> None:
    """Write labels one after another, as far as they have room."""
    for number, label in enumerate(labels):
        left = len(labels) - number
        room = WIDTH - _MARGIN - x - (_width(f"+ {left}") + _GAP if left > 1 else 0)
        if _width(label.text) > room:
            if number == 0 or left == 1:
                label = _Label(_cut(label.text, room), label.color)
            else:
                _write(axes, x, row, _Label(f"+ {left}", QUIET))
                return
        _write(axes, x, row, label)
        x += _width(label.text) + _GAP


def _write(axes: Axes, x: float, row: int, label: _Label) -> None:
    axes.text(
        *(x, _y(row), label.text),
        color=label.color,
        fontsize=_SIZE,
        verticalalignment="center_baseline",
        parse_math=False,
    )


def _shortened(name: str) -> str:
    """Return a name as it can be shown: its end, from a dot on, where it is too long."""
    shown = drawable(name)
    if _width(shown) <= _NAME:
        return shown
    parts = shown.split(".")
    for first in range(1, len(parts)):
        end = "…" + ".".join(parts[first:])
        if _width(end) <= _NAME:
            return end
    return _cut(parts[-1], _NAME)


def _cut(text: str, room: float) -> str:
    """Return the beginning of a text that has room, with an ellipsis if it is not all of it."""
    if _width(text) <= room:
        return text
    length = len(text)
    while length and _width(f"{text[:length]}…") > room:
        length -= 1
    return f"{text[:length]}…"


@cache
def _width(text: str) -> float:
    """Return how wide a text is drawn, in inches."""
    font = FontProperties(size=_SIZE)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72
