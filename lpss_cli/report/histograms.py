"""How a network's weights were spread before training: what an artefact remembers of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.checkpoints.metadata import HISTOGRAMS
from lpss_cli.report.layers import WeightHistogram, measure
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpss_cli.sparsity.prunable import Weight


def of_model(model: nn.Module) -> dict[str, Any]:
    """Return name → ends and counts of each prunable weight, in plain containers.

    A few hundred bytes a layer; a weight of zeros alone is left out.
    """
    from lpss_cli.sparsity.prunable import prunable_weights

    found = {name: _of_weight(name, weight) for name, weight in prunable_weights(model).items()}
    return {name: one for name, one in found.items() if one is not None}


def _of_weight(name: str, weight: Weight) -> dict[str, Any] | None:
    whole = measure(name, weight.tensor, weight.row_dim or 0).survivors
    if whole is None:
        return None
    one = zoomed_histogram(whole, lambda: weight.tensor)
    near = {"low": one.low, "high": one.high, "counts": list(one.counts)}
    return near if one.ends is None else near | {"outside": one.outside, "ends": list(one.ends)}


def of_record(record: Mapping[str, Any]) -> dict[str, ZoomedHistogram]:
    """Return how each weight was spread, by name, from a checked record; none of older ones."""
    return {name: _read(one) for name, one in (record.get(HISTOGRAMS) or {}).items()}


def _read(one: Mapping[str, Any]) -> ZoomedHistogram:
    ends = tuple(one["ends"]) if "ends" in one else None
    near = one["low"], one["high"], tuple(one["counts"])
    return ZoomedHistogram(*near, outside=one.get("outside", 0), ends=ends)


# MERGED: A histogram of most of a layer's weights, where a few far ones leave no room for the rest.
# MERGED: One weight at 40 beside others within ±0.2 puts all of these into one bin. So the range
# MERGED: is narrowed
# MERGED: to the fewest bins that leave out next to nothing, and counted anew; what lies further
# MERGED: out is a
# MERGED: number, and said in words.
# Narrowed is what has room for this many times the bins.
_TIMES = 4


@dataclass(frozen=True)
class ZoomedHistogram(WeightHistogram):
    """The weights of a layer that are not zero, the far ones left out.

    Attributes:
        low, high, counts: of those that are near each other.
        centroids: of all.
        outside: how many lie further out.
        ends: the smallest and the largest of all; None where none lies further out.
    """

    outside: int = 0
    ends: tuple[float, float] | None = None


def zoomed_histogram(
    whole: WeightHistogram, weight: Callable[[], Tensor | Array]
) -> ZoomedHistogram:
    """Look closer at a layer, if that needs no more than one in a hundred weights left out.

    Args:
        whole: how all weights are spread, in bins of the same width.
        weight: gives the values they are from; called only where there are far ones.

    Returns:
        Most of them on an axis of at most a quarter of the length, or all of them.
    """
    total, near = sum(whole.counts), ZoomedHistogram(**vars(whole))
    # A layer of twenty weights may have one far one.
    most = max(total // 100, min(1, total // 20))
    values = None
    while (window := _window(near.counts, most - near.outside)) is not None:
        width = (near.high - near.low) / len(near.counts)
        low, high = (near.low + end * width for end in window)
        values = arrays.to_numpy(weight()) if values is None else values
        closer = _counted(values, low, high, len(near.counts))
        if closer is None:
            break
        outside = total - sum(closer.counts)
        if not near.outside < outside <= most:
            break  # the last bits of an edge
        ends = whole.low, whole.high
        near = ZoomedHistogram(
            closer.low, closer.high, closer.counts, whole.centroids, outside, ends
        )
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


def _counted(values: Array, low: float, high: float, bins: int) -> WeightHistogram | None:
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
    return WeightHistogram(low, high, tuple(counts.tolist()))


def _between(values: Array, low: float, high: float) -> Iterator[Array]:
    """Yield the values from ``low`` to ``high`` that are not zero, in float32, some at a time.

    What is not finite is not between.
    """
    for block in arrays.row_blocks(values.reshape(-1, 1)):
        short = arrays.finite_or_zero(block)
        near = short[(short >= low) & (short <= high) & (short != 0)]
        if len(near):
            yield near
