"""Histograms without their far ends: what is counted anew, what is left out, and when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpss_cli.reporting.histograms import zoomed_histogram
from lpss_cli.reporting.html.figures import outlier_note
from lpss_cli.reporting.layers import measure

NEAR = torch.arange(-199.5, 200) / 1000  # 400 values at equal distances, ten a bin


def close(values, dtype=torch.float32):
    weight = torch.as_tensor(values).to(dtype).reshape(1, -1)
    return zoomed_histogram(measure("w", weight).survivors, lambda: weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [[40.0], [-7.0, 30.0, 40.2], [1e30, -1e3, 50.0, 3.0]])
def test_a_few_far_weights_are_numbers_beside_a_histogram_of_the_rest(far, dtype):
    found = close([*NEAR.tolist(), *far, 0.0, float("nan"), float("inf")], dtype)
    assert (found.low, found.high) == (NEAR[0], NEAR[-1])
    assert found.counts == (10,) * 40
    assert found.outside == len(far)
    assert found.ends == pytest.approx((min(float(NEAR[0]), *far), max(far)))
    assert found.centroids[0] == pytest.approx(np.mean([v for v in [*NEAR, *far] if v > 0]))


@pytest.mark.parametrize(
    "values",
    [NEAR, [*NEAR, *[40.0] * 5], [*NEAR[:18], 40.0], [*NEAR, 0.6], [40.0], [1.0] * 400],
    ids=["none", "many", "few", "near", "one", "equal"],
)
def test_without_far_weights_the_tensor_is_not_looked_at(values):
    whole = measure("w", torch.as_tensor(values).reshape(1, -1)).survivors
    found = zoomed_histogram(whole, lambda: pytest.fail("it was looked at"))
    assert (found.outside, found.ends) == (0, None)
    assert (found.low, found.high, found.counts) == (whole.low, whole.high, whole.counts)


@settings(max_examples=25)
@given(
    near=st.lists(st.integers(-50, 50), min_size=20, max_size=60),
    far=st.lists(st.integers(-(10**6), 10**6), max_size=3),
)
def test_nothing_is_lost_and_the_bins_are_those_of_numpy(near, far):
    values = np.array([v / 64 for v in near] + far, np.float32)
    values = values[values != 0]
    if not len(values):
        return
    found = close(values)
    assert sum(found.counts) + found.outside == len(values)
    assert found.outside <= max(len(values) // 100, 1)
    inside = values[(values >= found.low) & (values <= found.high)]
    assert len(inside) == sum(found.counts)
    if found.ends is not None and found.low < found.high:
        edges = torch.linspace(found.low, found.high, 41).numpy()
        edges[-1] = found.high
        assert found.counts == tuple(np.histogram(inside, edges)[0])
        assert 4 * (found.high - found.low) <= found.ends[1] - found.ends[0]


def test_what_is_left_out_is_said():
    def said(*far, before=()):
        near = 10 * NEAR.tolist()
        return outlier_note(close([*near, *far]), close([*near, *before]) if before else None)

    assert said() == ""
    assert said(40.2) == "1 weight lies outside the histogram, at 40.2"
    assert said(-40.2) == "1 weight lies outside the histogram, at -40.2"
    assert said(30.0, 7.0, 40.2) == "3 weights lie outside the histogram, up to 40.2"
    assert said(-30.0, -7.0) == "2 weights lie outside the histogram, down to -30"
    assert said(-30.0, 7.0) == "2 weights lie outside the histogram, from -30 to 7"
    mean = "; so does the mean of the positive weights, 4.99"
    assert said(9781.3) == "1 weight lies outside the histogram, at 9.78e+03" + mean
    assert said(before=[5.0]) == "before training 1 weight lay outside the histogram, at 5"
    coarse = "before training they ranged from -0.199 to 5, too far for this axis"
    assert said(before=[5.0] * 50) == coarse
