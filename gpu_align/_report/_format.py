"""Numbers as text: enough digits to tell two results apart, and no more."""

import math
from collections.abc import Sequence

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NARROW_SPACE = "\u202f"
_DIGITS = 6
_FEWEST_DIGITS = 3  # of the smallest number in a column, so that it does not read as zero
_MOST_DECIMALS = 9


def number(value: float | None, digits: int = _DIGITS) -> str:
    """Write a number with `digits` significant digits, in powers of ten where it is extreme."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    exponent = _exponent(value)
    if -4 <= exponent < 7:
        return _signed(f"{value:.{max(digits - 1 - exponent, 0)}f}")
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    raised = str(int(power)).translate(_SUPERSCRIPT)
    return f"{_signed(mantissa)}{_NARROW_SPACE}×{_NARROW_SPACE}10{raised}"


def aligned(values: Sequence[float | None]) -> list[str]:
    """Write the numbers of a column with equally many decimals, so that their points line up.

    The largest has six significant digits; the column falls back to `number` for each where its
    magnitudes lie too far apart for that.
    """
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes:
        return [number(value) for value in values]
    largest, smallest = _exponent(max(sizes)), _exponent(min(sizes))
    decimals = max(_DIGITS - 1 - largest, _FEWEST_DIGITS - 1 - smallest, 0)
    if largest >= 7 or decimals > _MOST_DECIMALS:
        return [number(value) for value in values]
    return [
        MISSING if v is None or not math.isfinite(v) else _signed(f"{v:.{decimals}f}")
        for v in values
    ]


def percent(share: float | None, decimals: int = 1) -> str:
    """Write a share of one in per cent; what is small but not zero does not read as zero."""
    if share is None or not math.isfinite(share):
        return MISSING
    least = 10.0**-decimals
    if 0 < 100 * share < least / 2:
        return f"<{_NARROW_SPACE}{least:.{decimals}f}{_NARROW_SPACE}%"
    return f"{_signed(f'{100 * share:.{decimals}f}')}{_NARROW_SPACE}%"


def share(part: float | None, whole: float | None) -> float | None:
    """Return `part / whole`, None where that says nothing."""
    if part is None or whole is None or whole == 0:
        return None
    return part / whole


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _signed(text: str) -> str:
    return text.replace("-", "−")
