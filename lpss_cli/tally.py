"""What one reading of a weight finds: counts, sums and norms, added up block of rows by block.

A block is small enough to stay in a cache while it is looked at from several sides. Nothing is
counted twice: both parts of a row, above and below 0, make up its 1-norm, and their number is what
is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpss_cli.sphere import hoyer, hoyer_of
from lpss_cli.weights import not_finite


@dataclass
class Tally:
    """Sums alone: small tensors kept from each block would keep the memory around them from use.

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

    def add(self, rows: Tensor) -> None:
        """Look at some rows, (rows, fan-in), of a real format of 16 bits or more, on the CPU."""
        values = rows.float()
        exact = values.double()
        positive = exact.clamp_min(0.0)
        up = positive.sum(1)
        down = positive.sub_(exact).sum(1)
        length = up + down
        # float32 holds all values of a shorter format; sums of them in float64 do not overflow.
        if rows.dtype == torch.float64 or not math.isfinite(length.sum()):
            self._add_with_care(rows)
            return
        kept = self._spread(values, float(up.sum()), float(down.sum()))
        self.kept += kept
        self.dead += int((length == 0).sum())
        self._rows(hoyer_of(length, torch.linalg.vector_norm(exact, 2, 1), rows.shape[1]))

    def _add_with_care(self, rows: Tensor) -> None:
        """Look at rows of float64, or with entries that are not finite."""
        kept = rows.count_nonzero(1)
        self.kept += int(kept.sum())
        self.dead += int((kept == 0).sum())
        self.not_finite += not_finite(rows)
        self._rows(hoyer(rows))
        values = finite(rows)
        up, down = (part.clamp_min(0.0).sum(dtype=torch.float64) for part in (values, -values))
        self._spread(values, float(up), float(down))

    def _rows(self, measured: Tensor) -> None:
        known = measured[measured.isfinite()]
        self.hoyer += float(known.sum())
        self.live += len(known)

    def _spread(self, values: Tensor, up: float, down: float) -> int:
        """Add what is known of the finite values; return how many are not zero."""
        # NumPy compares and counts several times as fast as PyTorch.
        array = values.numpy()
        above, below = int(np.count_nonzero(array > 0)), int(np.count_nonzero(array < 0))
        if above + below:
            both = above and below
            low, high = (values if both else values[values != 0]).aminmax()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.up, self.down = self.up + up, self.down + down
        self.above, self.below = self.above + above, self.below + below
        return above + below


def finite(rows: Tensor) -> Tensor:
    """Return values in float32; 0 in place of what is not finite, or too large."""
    return rows.float().nan_to_num(0.0, 0.0, 0.0)
