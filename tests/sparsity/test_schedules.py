"""Schedules at points where their value is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpss_cli.sparsity.schedules import (
    cubic_sparsity,
    logistic_ramp,
    warmup_cosine,
    warmup_step_decay,
)

unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [
        (0.0, 0.2, 0.0),
        (0.1, 0.2, 0.5),
        (0.2, 0.2, 1.0),
        (0.6, 0.2, 0.5),  # half of the way down
        (1.0, 0.2, 0.0),
        (0.0, 0.0, 1.0),
        (1 / 3, 0.0, 0.75),  # (1 + cos 60°)/2
        (0.5, 1.0, 0.5),
        (1.0, 1.0, 1.0),
    ],
)
def test_warmup_cosine_by_hand(progress, warmup, factor):
    assert warmup_cosine(progress, warmup) == pytest.approx(factor, abs=1e-15)


@given(unit, unit)
def test_warmup_cosine_stays_within_zero_and_one(progress, warmup):
    assert 0 <= warmup_cosine(progress, warmup) <= 1


@given(unit, unit, st.floats(0, 0.99))
def test_warmup_cosine_rises_then_falls(a, b, warmup):
    a, b = sorted((a, b))
    if b < warmup:
        assert warmup_cosine(a, warmup) <= warmup_cosine(b, warmup)
    elif a >= warmup:
        assert warmup_cosine(a, warmup) >= warmup_cosine(b, warmup)


@pytest.mark.parametrize(
    ("progress", "sparsity"),
    [
        (0.0, 0.1),
        (0.1, 0.1),
        (0.3, 0.9 - 0.8 * (2 / 3) ** 3),
        (0.4, 0.8),  # half-way: 7/8 of the way from 0.1 to 0.9
        (0.7, 0.9),
        (1.0, 0.9),
    ],
)
def test_cubic_by_hand(progress, sparsity):
    assert cubic_sparsity(progress, 0.1, 0.7, 0.1, 0.9) == pytest.approx(sparsity, abs=1e-15)


def test_cubic_reaches_its_target_exactly_and_needs_no_interval():
    assert cubic_sparsity(0.7, 0.1, 0.7, 0.0, 0.95) == 0.95
    assert cubic_sparsity(0.5, 0.5, 0.5, 0.0, 0.95) == 0.95
    assert cubic_sparsity(math.nextafter(0.5, 0), 0.5, 0.5, 0.0, 0.95) == 0.0


@given(unit, unit, unit, unit, unit, unit)
def test_cubic_is_monotone_between_start_and_target(a, b, begin, end, start, target):
    a, b = sorted((a, b))
    begin, end = sorted((begin, end))
    start, target = sorted((start, target))
    early, late = (cubic_sparsity(x, begin, end, start, target) for x in (a, b))
    assert start - 1e-12 <= early <= late + 1e-12
    assert late <= target + 1e-12


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.49, 1.0), (0.5, 0.1), (0.79, 0.1), (0.8, 0.01)],
)
def test_warmup_step_decay_by_hand(progress, factor):
    assert warmup_step_decay(progress, 0.1, (0.5, 0.8)) == pytest.approx(factor, abs=1e-15)


def test_warmup_step_decay_needs_no_warmup():
    assert warmup_step_decay(0.0, 0.0, ()) == 1.0


def test_the_logistic_ramp_equals_its_closed_form():
    # e = 40, 80, 120 of 160 epochs with τ = 0.5 and c = 10 epochs: σ(-4), σ(0), σ(4).
    def sigma(x):
        return 1 / (1 + math.exp(-x))

    low, high = sigma(-8), sigma((0.85 - 0.5) * 16)
    for progress, plain in ((0.25, sigma(-4)), (0.5, 0.5), (0.75, sigma(4))):
        expected = (plain - low) / (high - low)
        assert logistic_ramp(progress, 0.85, 0.5, 1 / 16) == pytest.approx(expected, rel=1e-12)


@given(unit, unit, unit, unit, st.floats(0.01, 1))
def test_the_logistic_ramp_rises_from_exactly_0_to_exactly_1(a, b, end, center, width):
    a, b = sorted((a, b))
    end = max(end, 0.01)
    early, late = (logistic_ramp(x, end, center, width) for x in (a, b))
    assert 0 <= early <= late <= 1
    assert logistic_ramp(0.0, end, center, width) == 0
    assert logistic_ramp(end, end, center, width) == 1
