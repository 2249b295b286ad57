"""One prunable weight in numbers, looked at in blocks of rows: it may be as large as memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.sparsity.hoyer import hoyer_of
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array, count_non_finite, finite_or_zero

if TYPE_CHECKING:
    from torch import Tensor

_BINS = 40


@dataclass(frozen=True)
class WeightHistogram:
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
    survivors: WeightHistogram | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / weights."""
        return self.zeros / self.weights if self.weights else 0.0


def measure(
    name: str, weight: Tensor | Array, row_dim: int = 0, fact: Mapping[str, Any] | None = None
) -> Layer:
    """Count and measure one weight; ``fact`` is what its training noted: ``p``, ``travel``."""
    fact = fact or {}
    array = arrays.to_numpy(weight)
    seen = RowStats()
    for rows in arrays.row_blocks(np.moveaxis(array, row_dim, 0)):
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
    from lpss_cli.sparsity.hoyer_prediction import TYPICAL_TRAVEL, predicted_hoyer

    travel = fact.get("travel") or TYPICAL_TRAVEL
    return predicted_hoyer(p, fan_in, zeros / array.size, travel)


def _survivors(array: Array, row_dim: int, seen: RowStats) -> WeightHistogram | None:
    """Read the weight once more, now that the ends of the histogram are known."""
    if not seen.above + seen.below:
        return None
    counts = np.zeros(_BINS, np.int64)
    for rows in arrays.row_blocks(np.moveaxis(array, row_dim, 0)):
        # A value of float64 may be too large for float32.
        with_care = seen.not_finite > 0 or rows.dtype == np.float64
        values = arrays.finite_or_zero(rows) if with_care else rows
        counts += np.bincount(_bin_of(values, seen.low, seen.high).ravel(), minlength=_BINS)
    zeros = array.size - seen.above - seen.below
    counts[_bin_of(np.zeros(1, np.float32), seen.low, seen.high)] -= zeros
    up = seen.up / seen.above if seen.above else None
    down = -seen.down / seen.below if seen.below else None
    return WeightHistogram(seen.low, seen.high, tuple(counts.tolist()), (up, down))


@np.errstate(over="ignore")
def _bin_of(values: Array, low: float, high: float) -> Array:
    """Return which of the equal bins from ``low`` to ``high`` float32 values lie in, or next to."""
    width = np.float32((high - low) / _BINS) or np.float32(1.0)
    places: Array = np.subtract(values, np.float32(low))
    np.divide(places, width, out=places)
    np.clip(places, 0, _BINS - 1, out=places)
    return places.astype(np.int32)


# MERGED: What one reading of a weight finds: counts, sums and norms, added up block of rows by
# MERGED: block.
# MERGED: A block is small enough to stay in a cache while it is looked at from several sides.
# MERGED: Nothing is
# MERGED: counted twice: both parts of a row, above and below 0, make up its 1-norm, and their
# MERGED: number is what
# MERGED: is kept.
# Shorter rows are added up column by column: to begin a row costs as much as so many entries.
_SHORT = 64


@dataclass
class RowStats:
    """Sums alone: small arrays kept from each block would keep the memory around them from use.

    Attributes:
        kept: entries that are not zero.
        dead: rows of zeros.
        not_finite: entries that are NaN or infinite; all below leaves them out.
        hoyer, live: sum of Hoyer's measure over the rows that have one, and how many have.
        low, high: the smallest and the largest entry that is not zero.
        up, down: sum of the entries above 0, and of the magnitudes of those below.
        above, below: how many these are.
    """

    kept: int = 0
    dead: int = 0
    not_finite: int = 0
    hoyer: float = 0.0
    live: int = 0
    low: float = math.inf
    high: float = -math.inf
    up: float = 0.0
    down: float = 0.0
    above: int = 0
    below: int = 0

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def add(self, rows: Array) -> None:
        """Look at some rows, (rows, fan-in), in float32 or float64."""
        if rows.dtype == np.float64:
            self._add_with_care(rows)
            return
        exact = rows.astype(np.float64, order="F" if rows.shape[1] < _SHORT else "C")
        part = exact.clip(0.0)
        up = part.sum(1)
        down = np.subtract(part, exact, out=part).sum(1)
        length = up + down
        # Sums of float32 in float64 do not overflow.
        if not math.isfinite(length.sum()):
            self._add_with_care(rows)
            return
        kept = self._spread(rows, float(up.sum()), float(down.sum()))
        self.kept += kept
        self.dead += len(length) - int(np.count_nonzero(length))
        norm = np.sqrt(np.square(exact, out=part).sum(1))
        self._rows(hoyer_of(length, norm, rows.shape[1]))

    def _add_with_care(self, rows: Array) -> None:
        """Look at rows of float64, or with entries that are not finite."""
        kept = np.count_nonzero(rows, axis=1)
        self.kept += int(kept.sum())
        self.dead += len(kept) - int(np.count_nonzero(kept))
        self.not_finite += count_non_finite(rows)
        self._rows(_hoyer(rows))
        values = finite_or_zero(rows)
        up, down = (part.clip(0.0).sum(dtype=np.float64) for part in (values, -values))
        self._spread(values, float(up), float(down))

    def _rows(self, measured: Array) -> None:
        known = measured[np.isfinite(measured)]
        self.hoyer += float(known.sum())
        self.live += len(known)

    def _spread(self, values: Array, up: float, down: float) -> int:
        """Add what is known of the finite values; return how many are not zero."""
        above, below = int(np.count_nonzero(values > 0)), int(np.count_nonzero(values < 0))
        if above + below:
            spread = values if above and below else values[values != 0]
            self.low, self.high = (
                min(self.low, float(spread.min())),
                max(self.high, float(spread.max())),
            )
        self.up, self.down = self.up + up, self.down + down
        self.above, self.below = self.above + above, self.below + below
        return above + below


def _hoyer(rows: Array) -> Array:
    """Hoyer's measure of every row; NaN where it has none, or an entry is not finite."""
    sizes = np.abs(rows, dtype=np.float64)
    if rows.dtype == np.float64 and rows.shape[1]:
        # Scaled by the row maximum so that the squares of tiny weights do not underflow; those of
        # shorter numbers do not.
        sizes /= sizes.max(1, keepdims=True)
    return hoyer_of(sizes.sum(1), np.sqrt(np.square(sizes).sum(1)), rows.shape[1])
