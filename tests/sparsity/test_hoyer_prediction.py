"""Hoyer predicted from p and fan-in: against simulation, closed forms and the inverse."""

from __future__ import annotations

import math

import pytest
import torch

from lpss_cli.errors import InputError
from lpss_cli.sparsity.hoyer_prediction import (
    hoyer_expected,
    hoyer_limit,
    limit,
    p_for,
    predicted_hoyer,
    shape,
    suitable_p,
)
from lpss_cli.sparsity.lp_geometry import hoyer


def simulated(n: int, k: float, p: float, sparsity: float) -> float:
    torch.manual_seed(n)
    gamma = torch.distributions.Gamma(torch.tensor(k).double(), torch.tensor(1.0).double())
    v = gamma.sample((max(400, 400_000 // n), n))
    log_w = v.log() / (p - 1)
    rows = (log_w - log_w.amax(1, keepdim=True)).exp()
    cut = v.flatten()[:1_000_000].quantile(sparsity) if sparsity else torch.tensor(-1.0)
    measured = hoyer(rows.where(v > cut, 0))
    return float(measured[measured.isfinite()].mean())


@pytest.mark.parametrize("n", [9, 64, 784])
@pytest.mark.parametrize("k", [0.7, 1.9, 20.0])
@pytest.mark.parametrize("p", [1.03, 1.07, 1.3, 2.0, 4.0])
def test_the_expectation_agrees_with_simulation(n, k, p):
    assert hoyer_expected(n, k, p) == pytest.approx(simulated(n, k, p, 0.0), abs=0.01)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("p", [1.07, 1.3, 2.0])
def test_the_expectation_of_cut_rows_agrees_with_simulation(p, sparsity):
    expected = simulated(300, 2.0, p, sparsity)
    assert hoyer_expected(300, 2.0, p, sparsity) == pytest.approx(expected, abs=0.01)


def test_the_closed_form_is_the_limit_of_the_expectation():
    # p = 2 is w = v: E|w|/√E w² = √(k/(k+1)).
    assert limit(3.0, 2.0) == pytest.approx(math.sqrt(3 / 4))
    assert hoyer_limit(10_000, 3.0, 2.0) == pytest.approx(
        hoyer_expected(10_000, 3.0, 2.0), abs=1e-3
    )
    assert hoyer_limit(100, 1.9, 1.07) > 1 > hoyer_expected(100, 1.9, 1.07)


def test_smaller_p_is_predicted_to_be_sparser_everywhere():
    ladder = [1.03, 1.07, 1.15, 1.3, 1.5, 2.0, 3.0, 4.0]
    for n in (9, 64, 300, 784, 4608):
        values = [predicted_hoyer(p, n) for p in ladder]
        assert values == sorted(values, reverse=True)
    assert [shape(p) for p in ladder] == sorted((shape(p) for p in ladder), reverse=True)


def test_longer_training_is_predicted_to_be_sparser():
    values = [predicted_hoyer(1.15, 300, travel=t) for t in (0.0, 0.1, 1.0, 5.0, 10.0, 100.0)]
    assert values == sorted(values)
    assert values[0] < 0.1


def test_more_zeros_are_predicted_to_be_sparser():
    values = [predicted_hoyer(1.3, 300, s) for s in (0.0, 0.5, 0.8, 0.9, 0.98)]
    assert values == sorted(values)
    assert values[-1] < 1


@pytest.mark.parametrize("n", [25, 300, 2304])
@pytest.mark.parametrize("wished", [0.3, 0.5, 0.7, 0.75])
def test_the_inverse_gives_back_the_wish(n, wished):
    assert predicted_hoyer(p_for(wished, n), n) == pytest.approx(wished, abs=1e-3)


@pytest.mark.parametrize("wished", [0.0, 0.99, 1.0, -1.0, math.nan])
def test_an_unreachable_wish_names_the_reachable_ones(wished):
    with pytest.raises(InputError, match=r"no p gives fc1 \(fan-in 300\)") as error:
        p_for(wished, 300, "fc1")
    low, _, high = error.value.do.removeprefix("choose from ").partition(" to ")
    assert predicted_hoyer(p_for(float(low), 300), 300) == pytest.approx(float(low), abs=1e-3)
    assert predicted_hoyer(p_for(float(high), 300), 300) == pytest.approx(float(high), abs=1e-3)


def test_auto_takes_smaller_p_for_higher_targets_within_bounds():
    for n in (2, 3, 9, 64, 144, 784, 10_000):
        chosen = [suitable_p(n, s) for s in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999)]
        assert chosen == sorted(chosen, reverse=True)
        assert all(1.06 < p <= 1.5 for p in chosen)
        # 2/(p-1) is whole: powers are multiplications.
        assert all(2 / (p - 1) == pytest.approx(round(2 / (p - 1))) for p in chosen)
    assert suitable_p(784, 0.9) < suitable_p(64, 0.9) + 0.1


def test_auto_aims_at_the_hoyer_of_rows_of_equal_survivors():
    n, sparsity = 784, 0.9
    wished = (math.sqrt(n) - math.sqrt(0.1 * n)) / (math.sqrt(n) - 1)
    assert predicted_hoyer(suitable_p(n, sparsity), n) == pytest.approx(wished, abs=0.02)
