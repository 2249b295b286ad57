"""One prunable weight in numbers.

A weight may be as large as memory, so it is read in blocks of rows. Each block is small enough to
stay in a cache while several things are counted in it, and nothing is counted twice: the positive
and the negative entries of a row make up its 1-norm, and their number is the number of kept
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lpss_cli.sparsity import layer_info
from lpss_cli.sparsity.hoyer import hoyer_of, hoyer_of_rows
from lpss_cli.sparsity.layer_info import LayerInfo, WithColumns
from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array, count_non_finite, finite_or_zero

if TYPE_CHECKING:
    from torch import Tensor

_BINS = 40
# Shorter rows are summed column by column: to start a row costs as much as this many entries.
_SHORT_ROW = 64


@dataclass(frozen=True)
class WeightHistogram:
    """The nonzero weights of a layer.

    Attributes:
        low, high: the ends of the histogram, which are the smallest and the largest of them.
        counts: number of weights in each of its bins of equal width.
        centroids: mean of the positive ones, mean of the negative ones; None without any
            (the two numbers of ASNI-II, arXiv:2202.09284).
    """

    low: float
    high: float
    counts: tuple[int, ...]
    centroids: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Layer(WithColumns):
    """One prunable weight.

    Attributes:
        name: name of the parameter.
        shape: its shape.
        weights: number of entries.
        zeros: number of entries that are exactly zero.
        hoyer: mean Hoyer sparsity of its live rows; None where no row has one.
        dead: number of neurons (rows) whose weights are all zero.
        columns: name → number, of the columns that methods declare; None where a column does not
            apply.
        not_finite: number of entries that are NaN or infinite.
        survivors: histogram of the nonzero weights; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    hoyer: float | None
    dead: int
    columns: Mapping[str, float | None] = field(default_factory=dict)
    not_finite: int = 0
    survivors: WeightHistogram | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / weights."""
        return self.zeros / self.weights if self.weights else 0.0


def measure(
    name: str, weight: Tensor | Array, row_dim: int = 0, info: LayerInfo | None = None
) -> Layer:
    """Count and measure one weight.

    Args:
        name: name of the parameter.
        weight: its values.
        row_dim: the dimension that counts neurons.
        info: what its training has noted about it, from which the columns of methods follow.
    """
    array = arrays.to_numpy(weight)
    stats = RowStats()
    for rows in arrays.row_blocks(np.moveaxis(array, row_dim, 0)):
        stats.add(rows)
    zeros = array.size - stats.kept
    fan_in = array.size // max(1, array.shape[row_dim])
    sparsity = zeros / array.size if array.size else 1.0
    return Layer(
        name=name,
        shape=array.shape,
        weights=array.size,
        zeros=zeros,
        hoyer=stats.hoyer / stats.live if stats.live else None,
        dead=stats.dead,
        columns={
            name: column.value(info or {}, fan_in, sparsity)
            for name, column in layer_info.columns().items()
        },
        survivors=_histogram(array, row_dim, stats),
        not_finite=stats.not_finite,
    )


def _histogram(array: Array, row_dim: int, stats: RowStats) -> WeightHistogram | None:
    """Read the weight a second time, now that the ends of the histogram are known."""
    if not stats.above + stats.below:
        return None
    counts = np.zeros(_BINS, np.int64)
    for rows in arrays.row_blocks(np.moveaxis(array, row_dim, 0)):
        # A value in float64 may be too large for float32.
        to_convert = stats.not_finite > 0 or rows.dtype == np.float64
        values = arrays.finite_or_zero(rows) if to_convert else rows
        counts += np.bincount(_bins_of(values, stats.low, stats.high).ravel(), minlength=_BINS)
    zeros = array.size - stats.above - stats.below
    counts[_bins_of(np.zeros(1, np.float32), stats.low, stats.high)] -= zeros
    positive = stats.up / stats.above if stats.above else None
    negative = -stats.down / stats.below if stats.below else None
    return WeightHistogram(stats.low, stats.high, tuple(counts.tolist()), (positive, negative))


@np.errstate(over="ignore")
def _bins_of(values: Array, low: float, high: float) -> Array:
    """Return the bins of float32 values, of equal width from ``low`` to ``high``.

    Values beyond the ends belong to the outermost bins.
    """
    width = np.float32((high - low) / _BINS) or np.float32(1.0)
    bins: Array = np.subtract(values, np.float32(low))
    np.divide(bins, width, out=bins)
    np.clip(bins, 0, _BINS - 1, out=bins)
    return bins.astype(np.int32)


@dataclass
class RowStats:
    """Sums over the rows of a weight, which :meth:`add` reads block by block.

    Only sums are kept: small arrays from every block would keep the memory around them in use.

    Attributes:
        kept: number of entries that are not zero.
        dead: number of rows of zeros.
        not_finite: number of entries that are NaN or infinite; all that follows leaves them out.
        hoyer, live: sum of Hoyer's measure over the rows that have one, and their number.
        low, high: the smallest and the largest nonzero entry.
        up, down: sum of the positive entries, and of the magnitudes of the negative ones.
        above, below: number of the positive, and of the negative entries.
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
        """Add a block of rows, of shape (rows, fan-in), in float32 or float64."""
        if rows.dtype == np.float64:
            self._add_with_care(rows)
            return
        exact = rows.astype(np.float64, order="F" if rows.shape[1] < _SHORT_ROW else "C")
        part = exact.clip(0.0)
        up = part.sum(1)
        down = np.subtract(part, exact, out=part).sum(1)
        length = up + down
        # Sums of float32 in float64 do not overflow, so an entry is not finite here.
        if not math.isfinite(length.sum()):
            self._add_with_care(rows)
            return
        kept = self._add_values(rows, float(up.sum()), float(down.sum()))
        self.kept += kept
        self.dead += len(length) - int(np.count_nonzero(length))
        norm = np.sqrt(np.square(exact, out=part).sum(1))
        self._add_hoyer(hoyer_of(length, norm, rows.shape[1]))

    def _add_with_care(self, rows: Array) -> None:
        """Add rows of float64, or rows with entries that are not finite."""
        kept = np.count_nonzero(rows, axis=1)
        self.kept += int(kept.sum())
        self.dead += len(kept) - int(np.count_nonzero(kept))
        self.not_finite += count_non_finite(rows)
        magnitudes = np.abs(rows, dtype=np.float64)
        may_underflow = rows.dtype == np.float64
        self._add_hoyer(hoyer_of_rows(magnitudes, _row_norm, may_underflow=may_underflow))
        values = finite_or_zero(rows)
        up, down = (part.clip(0.0).sum(dtype=np.float64) for part in (values, -values))
        self._add_values(values, float(up), float(down))

    def _add_hoyer(self, measured: Array) -> None:
        """Add Hoyer's measure of rows; NaN where a row has none, or has entries not finite."""
        known = measured[np.isfinite(measured)]
        self.hoyer += float(known.sum())
        self.live += len(known)

    def _add_values(self, values: Array, up: float, down: float) -> int:
        """Add ends, sums and counts of finite values; return how many are not zero."""
        above, below = int(np.count_nonzero(values > 0)), int(np.count_nonzero(values < 0))
        if above + below:
            nonzero = values if above and below else values[values != 0]
            self.low = min(self.low, float(nonzero.min()))
            self.high = max(self.high, float(nonzero.max()))
        self.up, self.down = self.up + up, self.down + down
        self.above, self.below = self.above + above, self.below + below
        return above + below


def _row_norm(rows: Array, order: float) -> Array:
    """Return norms of rows of magnitudes, of the order 2 or infinity."""
    norm: Array = rows.max(1) if order == math.inf else np.sqrt(np.square(rows).sum(1))
    return norm
