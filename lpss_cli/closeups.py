"""A histogram of most of a layer's weights, where a few far ones leave no room for the rest.

One weight at 40 beside others within ±0.2 puts all of these into one bin. So the range is narrowed
to the fewest bins that leave out next to nothing, and counted anew; what lies further out is a
number, and said in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from lpss_cli.layers import Survivors
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

# Narrowed is what has room for this many times the bins.
_TIMES = 4


@dataclass(frozen=True)
class Closeup(Survivors):
    """The weights of a layer that are not zero, the far ones left out.

    Attributes:
        low, high, counts: of those that are near each other.
        centroids: of all.
        outside: how many lie further out.
        ends: the smallest and the largest of all; None where none lies further out.
    """

    outside: int = 0
    ends: tuple[float, float] | None = None


def closeup(whole: Survivors, weight: Callable[[], Tensor | Array]) -> Closeup:
    """Look closer at a layer, if that needs no more than one in a hundred weights left out.

    Args:
        whole: how all weights are spread, in bins of the same width.
        weight: gives the values they are from; called only where there are far ones.

    Returns:
        Most of them on an axis of at most a quarter of the length, or all of them.
    """
    total, near = sum(whole.counts), Closeup(**vars(whole))
    # A layer of twenty weights may have one far one.
    most = max(total // 100, min(1, total // 20))
    values = None
    while (window := _window(near.counts, most - near.outside)) is not None:
        width = (near.high - near.low) / len(near.counts)
        low, high = (near.low + end * width for end in window)
        values = arrays.of(weight()) if values is None else values
        closer = _counted(values, low, high, len(near.counts))
        if closer is None:
            break
        outside = total - sum(closer.counts)
        if not near.outside < outside <= most:
            break  # the last bits of an edge
        ends = whole.low, whole.high
        near = Closeup(closer.low, closer.high, closer.counts, whole.centroids, outside, ends)
    return near


def _window(counts: tuple[int, ...], most: int) -> tuple[int, int] | None:
    """Return the first bin and the end of the fewest that leave out at most so many weights.

    None where these are more than a quarter of all: there is no need to look closer.
    """
    before = [0, *accumulate(counts)]
    needed = before[-1] - most
    for length in range(1, len(counts) // _TIMES + 1):
        starts = range(len(counts) - length + 1)
        start = max(starts, key=lambda i: before[i + length] - before[i])
        found = before[start + length] - before[start]
        if needed <= found < before[-1]:
            return start, start + length
    return None


def _counted(values: Array, low: float, high: float, bins: int) -> Survivors | None:
    """Count anew what is from ``low`` to ``high``, from the least of it to the largest."""
    ends = [(float(near.min()), float(near.max())) for near in _between(values, low, high)]
    if not ends:
        return None
    low, high = min(least for least, _ in ends), max(largest for _, largest in ends)
    edges = np.linspace(low, high, bins + 1, dtype=np.float32)
    edges[-1] = math.inf  # the largest belongs to the last bin
    counts = np.zeros(bins, np.int64)
    for near in _between(values, low, high):
        place = np.searchsorted(edges, near, side="right") - 1
        counts += np.bincount(place.clip(0, bins - 1), minlength=bins)
    if low == high:
        counts = counts[::-1]  # what is all the same lies in the first bin
    return Survivors(low, high, tuple(counts.tolist()))


def _between(values: Array, low: float, high: float) -> Iterator[Array]:
    """Yield the values from ``low`` to ``high`` that are not zero, in float32, some at a time.

    What is not finite is not between.
    """
    for block in arrays.blocks(values.reshape(-1, 1)):
        short = arrays.finite(block)
        near = short[(short >= low) & (short <= high) & (short != 0)]
        if len(near):
            yield near
