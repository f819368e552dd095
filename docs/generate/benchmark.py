"""Tables of the open benchmark, from what is known of its instances."""

import json
import statistics
from collections.abc import Callable, Mapping
from functools import cache

from docs.generate.tables import ROOT, Row, markdown, recorded


def instances() -> str:
    """The open benchmark: best values, bounds, what is proved."""
    rows = []
    for name, known in _instances().items():
        best, bound = known["best"], known["bound"]
        left = (best["value"] - bound["value"]) / best["value"]
        rows.append(
            (
                *(f"`{name}`", known["title"], known["groups"], known["units"]),
                *(f"{known['log10']:.0f}", f"{known['before']:.2f}", f"{best['value']:.4f}"),
                *(
                    f"{bound['value']:.4f}",
                    "0, **proved**" if bound["proved"] else f"{100 * left:.1f} %",
                ),
                *(f"{best['by']}: {best['with']}", f"{best['seconds']:.2f}"),
            )
        )
    columns = (
        *("instance", "networks", "groups", "units", "log10 of orders", "unaligned", "best known"),
        *("lower bound", "of it open", "found by", "CPU seconds"),
    )
    return f"{markdown(columns, rows, words=2)}\n\n{_instances_source()}"


def entries() -> str:
    """How far above the best known value every search ends, and after how long."""
    known = _instances()
    searches = list(next(iter(known.values()))["entries"])
    rows = []
    for name, instance in known.items():
        cells = []
        for search in searches:
            entry, best = instance["entries"][search], instance["best"]["value"]
            above = entry["value"] / best - 1
            gap = "**0**" if above < 1e-6 else f"{100 * above:.2f} %"
            cells.append(f"{gap}, {entry['seconds']:.2f} s")
        rows.append((f"`{name}`", *cells))
    return f"{markdown(('instance', *searches), rows)}\n\n{_instances_source()}"


def ranking() -> str:
    """How the searches do on all instances together."""
    known = list(_instances().values())
    rows = []
    for search in known[0]["entries"]:
        entries = [instance["entries"][search] for instance in known]
        bests = [instance["best"]["value"] for instance in known]
        gaps = [e["value"] / best - 1 for e, best in zip(entries, bests, strict=True)]
        times = [entry["seconds"] for entry in entries]
        close = f"{sum(gap <= _CLOSE for gap in gaps)} of {len(gaps)}"
        above = (f"{100 * max(value, 0):.2f} %" for value in (statistics.median(gaps), max(gaps)))
        spent = (f"{value:.2f}" for value in (statistics.median(times), max(times)))
        rows.append((search, close, *above, *spent))
    columns = (
        *("search", "within 0.1 % of the best known", "above it, median", "at most"),
        *("CPU seconds, median", "at most"),
    )
    return f"{markdown(columns, rows)}\n\n{_instances_source()}"


_CLOSE = 1e-3


@cache
def _records() -> Row:
    path = ROOT / "bench" / "instances" / "records.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _instances() -> Mapping[str, Row]:
    return _records()["instances"]


def _instances_source() -> str:
    return f"<small>{recorded(_records(), 'records')}</small>"


TABLES: Mapping[str, Callable[[], str]] = {
    "instances": instances,
    "entries": entries,
    "ranking": ranking,
}
"""As those of recorded figures."""
