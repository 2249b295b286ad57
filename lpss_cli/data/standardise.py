"""Zero mean and unit variance, by the training part alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaler:
    """What one set of features is standardised with.

    Attributes:
        mean: (F,) of the training part.
        scale: (F,) standard deviations (population, ddof = 0); 0 for a feature that is constant
            in training: it carries nothing and becomes 0 everywhere, also where the test part
            differs, since the network never learnt what a difference means.
    """

    mean: Values
    scale: Values

    def apply(self, x: Values) -> Values:
        """Standardised values: x (N, F) -> (N, F)."""
        safe = np.where(self.scale == 0, 1.0, self.scale)
        return np.where(self.scale == 0, 0.0, (x - self.mean) / safe)


def fit(x: Values) -> Scaler:
    """Measure the training part: x (N, F), N >= 1, finite."""
    # Not std == 0: the mean of equal numbers may be off by a rounding.
    constant = x.max(axis=0) == x.min(axis=0)
    return Scaler(x.mean(axis=0), np.where(constant, 0.0, x.std(axis=0)))
