"""What is left of a weight without a gradient: recurrences, eigenvalues, chosen settings."""

import math

import pytest
import torch

from lpss_cli.methods.gsm import (
    DECAY,
    FADED,
    MOMENTUM,
    choose_decay,
    critical_decay,
    remaining_fraction,
    smallest_decay,
)

RATES = [(0.5, 1), (1.0, 300), (0.1, 150), (0.01, 49)]


def official(steps):
    """280 epochs with drops after 160, 200 and 240 of them."""
    return [(1.0, steps * 4 // 7), (0.1, steps // 7), (0.01, steps // 7), (0.001, steps // 7)]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("lr", "beta", "eta"), [(0.1, 0.9, 0.01), (1.0, 0.0, 0.3), (0.2, 0.9, 1)])
def test_the_remaining_fraction_is_what_torchs_sgd_leaves(lr, beta, eta, nesterov):
    if beta == 0:
        nesterov = False
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=beta, weight_decay=eta, nesterov=nesterov)
    for factor, count in RATES:
        optimizer.param_groups[0]["lr"] = lr * factor
        for _ in range(count):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
    expected = abs(weight.item())
    assert remaining_fraction(RATES, lr, beta, eta, nesterov) == pytest.approx(
        expected, rel=1e-9, abs=1e-40
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_beyond_the_fastest_decay_the_eigenvalues_are_complex(beta, nesterov):
    def eigenvalues(x):  # of the step with αη = x, α = 1
        ahead = beta if nesterov else 1.0
        fade = 1 - x * (1 + beta if nesterov else 1)
        matrix = torch.tensor([[beta, x], [-beta * ahead, fade]], dtype=torch.float64)
        return torch.linalg.eigvals(matrix)

    limit = critical_decay(beta, nesterov)
    assert eigenvalues(limit * 0.99).imag.abs().max() == 0
    assert eigenvalues(limit * 1.01).imag.abs().max() > 0
    if not nesterov:
        assert eigenvalues(limit * 1.01).abs().max() == pytest.approx(math.sqrt(beta), rel=1e-9)


def test_a_slow_decay_is_the_textbook_rate():
    # (1 - αη/(1-β)) per step while αη ≪ (1-√β)².
    left = remaining_fraction([(1.0, 10_000)], 0.01, 0.9, 1e-3)
    assert left == pytest.approx((1 - 1e-4) ** 10_000, rel=1e-2)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steps", [7, 24, 160, 840, 4200, 20_000])
def test_a_short_run_is_solved_for(steps, nesterov):
    rates = official(steps) if steps > 7 else [(1.0, 7)]
    solved = choose_decay(rates, nesterov=nesterov)
    assert solved.remaining == remaining_fraction(
        rates, solved.lr, solved.momentum, solved.decay, nesterov
    )
    assert solved.remaining <= FADED
    assert solved.remaining >= 0.99 * FADED  # no more decay than is needed
    assert solved.lr == 1 - solved.momentum
    assert DECAY <= solved.decay <= critical_decay(solved.momentum, nesterov) / solved.lr


def test_the_official_budget_has_the_official_settings():
    solved = choose_decay(official(280 * 234))
    assert (solved.momentum, solved.decay) == (MOMENTUM, DECAY)
    assert solved.lr == pytest.approx(0.01)
    assert solved.remaining < FADED


def test_what_is_given_is_respected_and_what_it_leaves_is_said():
    rates = official(840)
    assert choose_decay(rates, momentum=0.9).momentum == 0.9
    assert choose_decay(rates, decay=1e-4).decay == 1e-4
    assert choose_decay(rates, lr=0.03).lr == 0.03
    stuck = choose_decay(rates, momentum=0.99)  # momentum caps the decay at √β per step
    assert stuck.remaining > FADED
    assert stuck.decay == smallest_decay(rates, stuck.lr, 0.99) == critical_decay(0.99) / stuck.lr


def test_nothing_to_train_is_no_reason_to_fail():
    assert choose_decay([]).momentum == MOMENTUM
    assert choose_decay([(1.0, 10)], lr=0.0).remaining == 1.0
