"""One prunable weight in numbers, looked at in blocks of rows: it may be as large as memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.tally import Tally
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

_BINS = 40


@dataclass(frozen=True)
class Survivors:
    """The weights of a layer that are not zero.

    Attributes:
        low, high: the ends of the histogram: the smallest and the largest of them.
        counts: how many lie in each of its equal bins.
        centroids: mean of the positive ones, mean of the negative ones; None without any
            (the two numbers of ASNI-II, arXiv:2202.09284).
    """

    low: float
    high: float
    counts: tuple[int, ...]
    centroids: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Layer:
    """One prunable weight.

    Attributes:
        name: the parameter.
        shape: its shape.
        weights: number of entries.
        zeros: number of entries exactly zero.
        hoyer: mean Hoyer of its live rows; None where no row has one.
        dead: number of neurons (rows) whose weights are all zero.
        p: the sphere's exponent it was trained on, if any.
        predicted: Hoyer that p, fan-in and the sparsity of the layer let one expect; None off the
            sphere and for p ≤ 1, where nothing is predicted.
        not_finite: number of entries that are NaN or infinite.
        survivors: how the weights that are not zero spread; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    hoyer: float | None
    dead: int
    p: float | None = None
    predicted: float | None = None
    not_finite: int = 0
    survivors: Survivors | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / weights."""
        return self.zeros / self.weights if self.weights else 0.0


def measure(
    name: str, weight: Tensor | Array, row_dim: int = 0, fact: Mapping[str, Any] | None = None
) -> Layer:
    """Count and measure one weight; ``fact`` is what its training noted: ``p``, ``travel``."""
    fact = fact or {}
    array = arrays.of(weight)
    seen = Tally()
    for rows in arrays.blocks(np.moveaxis(array, row_dim, 0)):
        seen.add(rows)
    zeros = array.size - seen.kept
    return Layer(
        name=name,
        shape=array.shape,
        weights=array.size,
        zeros=zeros,
        hoyer=seen.hoyer / seen.live if seen.live else None,
        dead=seen.dead,
        p=fact.get("p"),
        predicted=_predicted(array, row_dim, zeros, fact),
        survivors=_survivors(array, row_dim, seen),
        not_finite=seen.not_finite,
    )


def _predicted(array: Array, row_dim: int, zeros: int, fact: Mapping[str, Any]) -> float | None:
    p, fan_in = fact.get("p"), array.size // max(1, array.shape[row_dim])
    if p is None or p <= 1 or fan_in <= 1 or zeros >= array.size:
        return None
    from lpss_cli.prediction import TYPICAL_TRAVEL, predicted_hoyer

    travel = fact.get("travel") or TYPICAL_TRAVEL
    return predicted_hoyer(p, fan_in, zeros / array.size, travel)


def _survivors(array: Array, row_dim: int, seen: Tally) -> Survivors | None:
    """Read the weight once more, now that the ends of the histogram are known."""
    if not seen.above + seen.below:
        return None
    counts = np.zeros(_BINS, np.int64)
    for rows in arrays.blocks(np.moveaxis(array, row_dim, 0)):
        # A value of float64 may be too large for float32.
        with_care = seen.not_finite > 0 or rows.dtype == np.float64
        values = arrays.finite(rows) if with_care else rows
        counts += np.bincount(_bin_of(values, seen.low, seen.high).ravel(), minlength=_BINS)
    zeros = array.size - seen.above - seen.below
    counts[_bin_of(np.zeros(1, np.float32), seen.low, seen.high)] -= zeros
    up = seen.up / seen.above if seen.above else None
    down = -seen.down / seen.below if seen.below else None
    return Survivors(seen.low, seen.high, tuple(counts.tolist()), (up, down))


@np.errstate(over="ignore")
def _bin_of(values: Array, low: float, high: float) -> Array:
    """Return which of the equal bins from ``low`` to ``high`` float32 values lie in, or next to."""
    width = np.float32((high - low) / _BINS) or np.float32(1.0)
    places: Array = np.subtract(values, np.float32(low))
    np.divide(places, width, out=places)
    np.clip(places, 0, _BINS - 1, out=places)
    return places.astype(np.int32)
