"""Standardization: zero mean and unit variance, measured on the training part alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaler:
    """scikit-learn's ``StandardScaler``, under which constant features become 0 everywhere.

    A feature that is constant in training carries no information. It becomes 0 in the test part
    too, even where its value differs there: the network has never learned what that means.

    Attributes:
        standard: the fitted ``StandardScaler`` of F features.
        constant: (F,) bool, the features that are set to 0.
    """

    standard: Any
    constant: npt.NDArray[np.bool_]

    @classmethod
    def fit(cls, x: FloatArray) -> Scaler:
        """Measure the training part: x (N, F), N >= 1, finite."""
        from sklearn.preprocessing import StandardScaler

        standard = StandardScaler().fit(x)
        # StandardScaler takes any feature for constant, and leaves it unscaled, whose deviation
        # is tiny relative to its mean: time stamps in nanoseconds, for example. Only features
        # without different values, or whose deviation underflows, are constant here.
        scale = np.where(x.max(axis=0) == x.min(axis=0), 0.0, x.std(axis=0))
        standard.scale_ = np.where(scale == 0, 1.0, scale)
        return cls(standard, scale == 0)

    def replace(self, mean: FloatArray | None, scale: FloatArray | None) -> Scaler:
        """Return the scaler with a given mean or scale (F,), > 0, in place of the measured one.

        With a given scale no feature counts as constant.
        """
        from sklearn.base import clone

        standard = clone(self.standard)
        standard.mean_ = self.standard.mean_ if mean is None else mean
        standard.scale_ = self.standard.scale_ if scale is None else scale
        constant = self.constant if scale is None else np.zeros_like(self.constant)
        return Scaler(standard, constant)

    @property
    def mean(self) -> FloatArray:
        """(F,) means of the training part."""
        mean: FloatArray = self.standard.mean_
        return mean

    @property
    def scale(self) -> FloatArray:
        """(F,) standard deviations (population, ddof = 0); 0 for constant features."""
        return np.where(self.constant, 0.0, self.standard.scale_)

    def transform(self, x: FloatArray) -> FloatArray:
        """Standardize values: x (N, F) -> (N, F)."""
        return np.where(self.constant, 0.0, self.standard.transform(x))
