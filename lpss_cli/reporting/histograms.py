"""Histograms of weights: zoomed in where a few outliers leave no room, and kept in artifacts.

One weight at 40 beside others within ±0.2 puts all of these into one bin. So the range is narrowed
to the fewest bins that leave out next to nothing, and the weights in it are counted again; how many
lie outside is a number, and said in words.

An artifact keeps such a histogram of every weight as it was before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.checkpoints.metadata import HISTOGRAMS
from lpss_cli.reporting.layers import WeightHistogram, measure
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpss_cli.sparsity.prunable import Weight

# A narrowed range leaves room for at least this many times its bins.
_ZOOM = 4


@dataclass(frozen=True)
class ZoomedHistogram(WeightHistogram):
    """The nonzero weights of a layer without outliers.

    Attributes:
        low, high, counts: of the weights that are not outliers.
        centroids: of all weights.
        outside: number of outliers.
        ends: the smallest and the largest of all weights; None where there are no outliers.
    """

    outside: int = 0
    ends: tuple[float, float] | None = None


def zoomed_histogram(
    histogram: WeightHistogram, weight: Callable[[], Tensor | Array]
) -> ZoomedHistogram:
    """Zoom in, if that leaves out at most one weight in a hundred.

    Args:
        histogram: of all nonzero weights of a layer.
        weight: returns the values; called only if there are outliers.

    Returns:
        Most weights on an axis of at most a quarter of the length, or all of them.
    """
    total, zoomed = sum(histogram.counts), ZoomedHistogram(**vars(histogram))
    # A layer of twenty weights may have one outlier.
    max_outside = max(total // 100, min(1, total // 20))
    values = None
    while (window := _window(zoomed.counts, max_outside - zoomed.outside)) is not None:
        width = (zoomed.high - zoomed.low) / len(zoomed.counts)
        low, high = (zoomed.low + end * width for end in window)
        values = arrays.to_numpy(weight()) if values is None else values
        recounted = _count(values, low, high, len(zoomed.counts))
        if recounted is None:
            break
        outside = total - sum(recounted.counts)
        if not zoomed.outside < outside <= max_outside:
            break  # an edge fell on the other side of a weight by rounding
        ends = histogram.low, histogram.high
        zoomed = ZoomedHistogram(
            recounted.low, recounted.high, recounted.counts, histogram.centroids, outside, ends
        )
    return zoomed


def _window(counts: tuple[int, ...], max_outside: int) -> tuple[int, int] | None:
    """Return the first bin and the end of the fewest bins that leave out at most so many weights.

    None where these are more than a quarter of all bins, so that there is no need to zoom in, and
    where they leave out none.
    """
    cumulative = [0, *accumulate(counts)]
    needed = cumulative[-1] - max_outside
    for length in range(1, len(counts) // _ZOOM + 1):
        starts = range(len(counts) - length + 1)
        start = max(starts, key=lambda i: cumulative[i + length] - cumulative[i])
        inside = cumulative[start + length] - cumulative[start]
        if needed <= inside < cumulative[-1]:
            return start, start + length
    return None


def _count(values: Array, low: float, high: float, bins: int) -> WeightHistogram | None:
    """Return a histogram of the nonzero values from ``low`` to ``high``, between their extremes.

    None where there are no such values.
    """
    extremes = [(float(part.min()), float(part.max())) for part in _between(values, low, high)]
    if not extremes:
        return None
    low, high = min(least for least, _ in extremes), max(largest for _, largest in extremes)
    edges = np.linspace(low, high, bins + 1, dtype=np.float32)
    edges[-1] = math.inf  # the largest value belongs to the last bin
    counts = np.zeros(bins, np.int64)
    for part in _between(values, low, high):
        indices = np.searchsorted(edges, part, side="right") - 1
        counts += np.bincount(indices.clip(0, bins - 1), minlength=bins)
    if low == high:
        counts = counts[::-1]  # equal values lie in the first bin
    return WeightHistogram(low, high, tuple(counts.tolist()))


def _between(values: Array, low: float, high: float) -> Iterator[Array]:
    """Yield the finite nonzero values from ``low`` to ``high``, in float32, block by block."""
    for block in arrays.row_blocks(values.reshape(-1, 1)):
        finite = arrays.finite_or_zero(block)
        inside = finite[(finite >= low) & (finite <= high) & (finite != 0)]
        if len(inside):
            yield inside


def of_model(model: nn.Module) -> dict[str, Any]:
    """Return name → histogram of each prunable weight, as an artifact keeps it.

    A few hundred bytes per layer in plain containers; weights of zeros alone are left out.
    """
    from lpss_cli.sparsity.prunable import prunable_weights

    entries = {name: _to_entry(name, weight) for name, weight in prunable_weights(model).items()}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _to_entry(name: str, weight: Weight) -> dict[str, Any] | None:
    histogram = measure(name, weight.tensor, weight.row_dim or 0).survivors
    if histogram is None:
        return None
    zoomed = zoomed_histogram(histogram, lambda: weight.tensor)
    entry = {"low": zoomed.low, "high": zoomed.high, "counts": list(zoomed.counts)}
    if zoomed.ends is None:
        return entry
    return entry | {"outside": zoomed.outside, "ends": list(zoomed.ends)}


def of_record(record: Mapping[str, Any]) -> dict[str, ZoomedHistogram]:
    """Return the histograms of a checked record by name; records of older versions have none."""
    return {name: _from_entry(entry) for name, entry in (record.get(HISTOGRAMS) or {}).items()}


def _from_entry(entry: Mapping[str, Any]) -> ZoomedHistogram:
    ends = tuple(entry["ends"]) if "ends" in entry else None
    inside = entry["low"], entry["high"], tuple(entry["counts"])
    return ZoomedHistogram(*inside, outside=entry.get("outside", 0), ends=ends)
