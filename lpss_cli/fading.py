"""How fast decay and momentum make a weight fade that sees no gradient: pure numbers.

Such a weight w and its momentum Z follow ``Z ← βZ + ηw, w ← w - αZ``, that is [Z; w] is multiplied
by [[β, η], [-αβ, 1-αη]] at every step (β momentum, η decay, α learning rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Learning-rate factors of a run as stretches of equal ones: (factor, number of steps).
Rates = Sequence[tuple[float, int]]
Matrix = tuple[float, float, float, float]

#: What is to be left of a redundant weight; at a ten-thousandth a cut is lossless.
LEFT = 3e-5
#: The largest momentum and the least decay that are chosen: those of GSM's official recipe.
MOMENTUM, DECAY = 0.99, 5e-4


@dataclass(frozen=True)
class Solved:
    """Settings of a run, and the part of a redundant weight that they leave."""

    lr: float
    momentum: float
    decay: float
    left: float


def solve(
    rates: Rates,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    decay: float | None = None,
    nesterov: bool = False,
    speed: float = 1.0,
) -> Solved:
    """Choose what is None so that a redundant weight fades to ``LEFT`` within the run.

    Momentum is first: it keeps a weight from fading faster than √β per step, so the 18.4/(1-β)
    steps in which that is a factor of 1e-4 may take a third of the run; it is lowered further
    where that does not do. The decay is the smallest that does.

    Args:
        rates: factors on the learning rate, which is a peak.
        lr: the peak learning rate; None is ``speed·(1-β)``.
        momentum: β, respected where given, as are the others.
        decay: η.
        nesterov: whether steps look ahead.
        speed: the wished α/(1-β), the step that a lasting gradient makes in the end.
    """
    steps = sum(count for _, count in rates)
    beta = momentum
    if beta is None:
        beta = min(MOMENTUM, max(0.0, 1 - 3 * 18.4 / steps)) if steps else MOMENTUM
    while True:
        alpha = speed * (1 - beta) if lr is None else lr
        eta = least_decay(rates, alpha, beta, nesterov) if decay is None else decay
        left = remaining(rates, alpha, beta, eta, nesterov)
        fixed = momentum is not None or decay is not None
        if left <= LEFT or beta == 0 or fixed or steps == 0:
            return Solved(alpha, beta, eta, left)
        beta = max(0.0, 1 - 1.1 * (1 - beta))


def least_decay(rates: Rates, lr: float, beta: float, nesterov: bool = False) -> float:
    """Return the least decay from ``DECAY`` up that leaves ``LEFT``, or else the fastest one."""
    peak = lr * max((factor for factor, _ in rates), default=0.0)
    low, high = DECAY, max(DECAY, fastest(beta, nesterov) / peak if peak else 0.0)
    if remaining(rates, lr, beta, low, nesterov) <= LEFT:
        return low
    if remaining(rates, lr, beta, high, nesterov) > LEFT:
        return high
    for _ in range(40):
        middle = math.sqrt(low * high)
        if remaining(rates, lr, beta, middle, nesterov) > LEFT:
            low = middle
        else:
            high = middle
    return high


def fastest(beta: float, nesterov: bool = False) -> float:
    """Return the ``αη`` from which on a redundant weight swings instead of fading faster.

    The step's matrix has trace 1 + β - αη and determinant β: its eigenvalues are real, and the
    larger one falls with αη, up to αη = (1-√β)², where both are √β. With Nesterov's look-ahead
    the trace is (1+β)(1-αη) and the determinant β(1-αη).
    """
    return float(((1 - beta) / (1 + beta)) ** 2 if nesterov else (1 - math.sqrt(beta)) ** 2)


def remaining(rates: Rates, lr: float, beta: float, eta: float, nesterov: bool = False) -> float:
    """Return the part of a weight that is left after all steps, from zero momentum."""
    z, w = 0.0, 1.0
    for factor, count in rates:
        alpha = lr * factor
        # Z = βZ + ηw, then w = w - αZ; Nesterov: w = w - α(ηw + βZ).
        ahead = 1 + beta if nesterov else 1.0
        step = (beta, eta, -alpha * beta * (beta if nesterov else 1), 1 - alpha * eta * ahead)
        a, b, c, d = _power(step, count)
        z, w = a * z + b * w, c * z + d * w
    return abs(w)


def _power(matrix: Matrix, count: int) -> Matrix:
    """Return a power of [[a, b], [c, d]] by repeated squaring."""
    result: Matrix = (1.0, 0.0, 0.0, 1.0)
    while count:
        if count % 2:
            result = _product(matrix, result)
        matrix, count = _product(matrix, matrix), count // 2
    return result


def _product(x: Matrix, y: Matrix) -> Matrix:
    (a, b, c, d), (e, f, g, h) = x, y
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
