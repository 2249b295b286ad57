"""A weight measured entry by entry, with sums that round once: slow, and literal."""

from __future__ import annotations

import math

import numpy as np


def hoyer(row: list[float]) -> float | None:
    """Hoyer's measure of a row (JMLR 5, 2004); None where it is undefined or not finite."""
    n, norm = len(row), math.hypot(*row)
    if n < 2 or not 0 < norm < math.inf:
        return None
    # Divided first: the sum of 1e308 and 1e308 is no number of float64.
    length = math.fsum(abs(x / norm) for x in row)
    return max(0.0, (math.sqrt(n) - length) / (math.sqrt(n) - 1))


def measure(rows: list[list[float]], bins: int) -> dict[str, object]:
    """Return the attributes of ``layers.Layer`` and ``layers.Survivors``.

    Args:
        rows: the values, exactly.
        bins: of the histogram, which is one of the values as float32; what is not finite then is
            left out.
    """
    entries = [x for row in rows for x in row]
    known = [h for h in map(hoyer, rows) if h is not None]
    with np.errstate(over="ignore"):
        short = [np.float32(x) for x in entries]
    spread = [x for x in short if np.isfinite(x) and x != 0]
    found: dict[str, object] = {
        "zeros": sum(x == 0 for x in entries),
        "dead": sum(all(x == 0 for x in row) for row in rows),
        "not_finite": sum(not math.isfinite(x) for x in entries),
        "hoyer": math.fsum(known) / len(known) if known else None,
    }
    if spread:
        low, high = min(spread), max(spread)
        width = np.float32((float(high) - float(low)) / bins) or np.float32(1)
        with np.errstate(over="ignore"):
            places = [min(int(min((x - low) / width, np.float32(bins))), bins - 1) for x in spread]
        found["low"], found["high"] = float(low), float(high)
        found["counts"] = tuple(places.count(place) for place in range(bins))
        halves = [x for x in spread if x > 0], [x for x in spread if x < 0]
        found["centroids"] = tuple(math.fsum(half) / len(half) if half else None for half in halves)
    return found
