"""Standardization by the training part, against the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lpss_cli.data.scaling import Scaler

columns = arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)),
                 elements=st.floats(-1e9, 1e9))  # fmt: skip


@given(columns)
def test_values_equal_the_textbook_formula_to_the_last_bit(x):
    scaler = Scaler.fit(x)
    constant = (x.max(axis=0) == x.min(axis=0)) | (x.std(axis=0) == 0)
    assert np.array_equal(scaler.mean, x.mean(axis=0))
    assert np.array_equal(scaler.scale, np.where(constant, 0.0, x.std(axis=0)))
    expected = (x - x.mean(axis=0)) / np.where(constant, 1.0, x.std(axis=0))
    assert np.array_equal(scaler.transform(x), np.where(constant, 0.0, expected))


def test_a_constant_feature_is_zero_even_where_the_test_part_differs():
    scaler = Scaler.fit(np.array([[0.1, 1.0]] * 7 + [[0.1, 2.0]]))
    assert scaler.scale[0] == 0
    assert scaler.transform(np.array([[0.1, 1.0], [-9.0, 1.0]]))[:, 0].tolist() == [0.0, 0.0]


def test_a_small_deviation_around_a_large_mean_is_still_scaled():
    # StandardScaler alone takes this for a constant, and would leave it at values of millions.
    nanoseconds = 1.7e18 + 1e6 * np.arange(10_000.0)[:, None]
    scaled = Scaler.fit(nanoseconds).transform(nanoseconds)
    assert scaled.mean() == pytest.approx(0, abs=1e-4)
    assert scaled.std() == pytest.approx(1)


@pytest.mark.parametrize("mean", [None, np.array([1.0, 2.0])])
@pytest.mark.parametrize("scale", [None, np.array([4.0, 5.0])])
def test_given_values_replace_the_measured_ones(mean, scale):
    x = np.array([[0.1, 1.0], [0.1, 3.0]])
    scaler = Scaler.fit(x)
    replaced = scaler.replace(mean, scale)
    assert replaced.mean.tolist() == [0.1, 2.0] if mean is None else mean.tolist()
    assert replaced.scale.tolist() == ([0.0, 1.0] if scale is None else scale.tolist())
    first = (x[:, 0] - replaced.mean[0]) / 4 if scale is not None else np.zeros(2)
    second = (x[:, 1] - replaced.mean[1]) / replaced.scale[1]
    assert np.array_equal(replaced.transform(x), np.stack([first, second], axis=1))
    assert scaler.scale.tolist() == [0.0, 1.0]  # the measured ones are unchanged
