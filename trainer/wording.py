"""Numbers as text for people: a dash for what is not defined, a true minus sign, no line break before a unit."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log10, nan
from statistics import mean, stdev
from typing import Any

_GAP = "\N{NO-BREAK SPACE}"
_DASH = "–"


def number(x: Any) -> float:
    """A JSON number as a float; NaN for what is not one (null, a missing key, "NaN")."""
    try:
        return float(x)
    except (TypeError, ValueError):
        return nan


def decimals(width: float) -> int:
    """Decimals that show two digits of an interval of this width; 3 where there is none."""
    return min(max(1 - int(log10(width) // 1), 0), 6) if isfinite(width) and width > 0 else 3


def value(x: Any, places: int = 3, sign: bool = False) -> str:
    """A measured number: `0.953`, `−0.020`, `12,345`."""
    x = number(x)
    if not isfinite(x):
        return _DASH
    plus = "+" if sign else ""
    text = f"{x:{plus}.1e}" if x != 0 and abs(x) < 0.5 * 10**-places else f"{x:{plus},.{places}f}"
    return text.replace("-", "−")


def span(low: Any, high: Any, places: int = 3, sign: bool = False) -> str:
    """An interval: `0.941 … 0.965`; empty where it is not defined."""
    known = isfinite(number(low)) and isfinite(number(high))
    return f"{value(low, places, sign)} … {value(high, places, sign)}" if known else ""


def spread(seeds: Sequence[Any], places: int = 3) -> str:
    """The mean over seeds, with their standard deviation where there are several: `0.382 ± 0.012`; empty where there is none."""
    known = [number(seed) for seed in seeds]
    if not known:
        return ""
    return value(mean(known), places) + (f" ± {value(stdev(known), places)}" if len(known) > 1 and all(map(isfinite, known)) else "")


def cosine(x: Any) -> str:
    """A cosine, or another number between -1 and 1: `+0.31`, `−0.02`, `0.00`."""
    x = number(x)
    return f"{round(x, 2) or 0.0:{'+' if round(x, 2) else ''}.2f}".replace("-", "−") if isfinite(x) else _DASH


def short(x: Any) -> str:
    """A number in three digits: `0.0312`, `41.2`, `1.2e+06`."""
    x = number(x)
    return f"{x:.3g}".replace("-", "−") if isfinite(x) else _DASH


def count(x: Any) -> str:
    """A count, exact up to 99,999 and with a unit above: `12,345`, `1.28 M`."""
    x = number(x)
    if not isfinite(x):
        return _DASH
    for size, scale, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if abs(x) >= size:
            return f"{x / scale:.{max(0, 2 - int(log10(abs(x / scale))))}f}{_GAP}{unit}"
    return f"{x:,.0f}"


def seconds(x: Any) -> str:
    """A duration: `0.42 s`, `8.2 s`, `3 min 12 s`, `2 h 05 min`."""
    x = number(x)
    if not isfinite(x):
        return _DASH
    if x < 59.95:
        return f"{x:.{2 if x < 1 else 1}f}{_GAP}s"
    minutes, rest = divmod(round(x), 60)
    return f"{minutes}{_GAP}min {rest:02d}{_GAP}s" if minutes < 60 else f"{minutes // 60}{_GAP}h {minutes % 60:02d}{_GAP}min"


def share(x: Any) -> str:
    """A part of 1 as a percentage: `12 %`, `0.3 %`."""
    x = 100 * number(x)
    if not isfinite(x):
        return _DASH
    return f"{x:.{0 if x == 0 or x >= 9.95 else 1}f}{_GAP}%"


def many(n: int, what: str, plural: str | None = None) -> str:
    """A count with its noun: `1 task`, `1,204 rows`."""
    return f"{n:,} {what if n == 1 else plural or what + 's'}"
