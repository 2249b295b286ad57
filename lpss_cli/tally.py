"""What one reading of a weight finds: counts, sums and norms, added up block of rows by block.

A block is small enough to stay in a cache while it is looked at from several sides. Nothing is
counted twice: both parts of a row, above and below 0, make up its 1-norm, and their number is what
is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lpss_cli.hoyer import hoyer_of
from lpss_cli.utils.arrays import Array, finite, not_finite

# Shorter rows are added up column by column: to begin a row costs as much as so many entries.
_SHORT = 64


@dataclass
class Tally:
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
        self.not_finite += not_finite(rows)
        self._rows(_hoyer(rows))
        values = finite(rows)
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
