"""Prediction of Hoyer's measure from p, before anything is trained (LpSS, arXiv:2103.16013, §3).

A weight on the Lp sphere is a power of a feature: ``|w| = |v|^a`` with ``a = 1/(p-1)``. If the
features of a row are independent and Gamma distributed with shape k, the expectation of Hoyer's
measure over rows of n entries follows, with or without the smallest entries set to zero. The shape
of trained rows was calibrated on other networks than those that it is tested on
(``benchmarks/hoyer.py``).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.sparsity.lp_geometry import P_RANGES

# Shape of trained features, ``k = (k0 + k1 a²)(1 + c/Λ)``, fitted to the calibration networks.
_SHAPE, _START = (0.793, 0.0732), 9.09
#: Λ of a training of default length: 2,000 steps on a cosine schedule with a peak η of 0.01.
TYPICAL_TRAVEL = 10.0
# Smallest number of kept inputs per row that ``suitable_p`` aims at.
_FEWEST_INPUTS = 8
# Its range. On held-out data, p above 1.5 was never better (benchmarks/tune.py), and p below 1.2
# was worse wherever a network is pruned to a fiftieth or less (benchmarks/stability.py).
_AUTO_P = (1.2, 1.5)
# Nodes of the two integration grids.
_NODES_V, _NODES_T = 600, 400


def shape(p: float, travel: float = TYPICAL_TRAVEL) -> float:
    """Return the shape k of the features of trained rows, for p > 1.

    With ``a = 1/(p-1)``, k grows like ``k0 + k1 a²``, so that the variance of log|w|, about
    ``a²/k``, is bounded however small p is. Short trainings leave rows flatter, by ``1 + c/Λ``.

    Args:
        p: exponent of the sphere, above 1.
        travel: Λ, the sum of the steps η over the training, which is how far rows may move in
            units of their radius.
    """
    a = 1.0 / (p - 1.0)
    # Still flatter rows no longer change any digit.
    return min((_SHAPE[0] + _SHAPE[1] * a * a) * (1.0 + _START / max(travel, 1e-9)), 1e4)


def predicted_hoyer(
    p: float, n: int, sparsity: float = 0.0, travel: float = TYPICAL_TRAVEL
) -> float:
    """Predict the mean Hoyer sparsity of a layer that is trained on spheres of p > 1.

    Args:
        p: exponent of the sphere, above 1.
        n: fan-in, at least 2.
        sparsity: fraction of the layer's weights that is zero, the smallest ones, in [0, 1).
        travel: Λ, the sum of the steps η over the training.
    """
    return hoyer_expected(n, shape(p, travel), p, sparsity)


def p_for(hoyer: float, n: int, name: str = "a layer") -> float:
    """Return the p > 1 that is predicted to give a Hoyer sparsity: the inverse of the prediction.

    Args:
        hoyer: desired Hoyer sparsity of the layer without pruning.
        n: fan-in, at least 2.
        name: name of the layer, for the error.

    Raises:
        InputError: no p from 1.03 to 4 is predicted to give it.
    """
    (_, _), (low, high) = P_RANGES
    least, most = predicted_hoyer(high, n), predicted_hoyer(low, n)
    if not least <= hoyer <= most:
        raise InputError(
            f"no p gives {name} (fan-in {n}) a Hoyer sparsity of {hoyer:g}",
            f"choose from {math.ceil(100 * least) / 100:.2f} to {math.floor(100 * most) / 100:.2f}",
        )
    # Bisection over a = 1/(p-1), with which the Hoyer sparsity grows.
    small, large = 1.0 / (high - 1.0), 1.0 / (low - 1.0)
    while large - small > 1e-4 * large:
        middle = 0.5 * (small + large)
        if predicted_hoyer(1.0 + 1.0 / middle, n) < hoyer:
            small = middle
        else:
            large = middle
    return 1.0 + 2.0 / (small + large)


@lru_cache(maxsize=1024)
def suitable_p(n: int, sparsity: float) -> float:
    """Return the p that makes rows as unequal before pruning as pruning to the target will.

    A row of n weights that keeps m equal ones has a Hoyer sparsity of ``(√n - √m)/(√n - 1)``, the
    least that n - m zeros allow. The p that is predicted to give that much without pruning is
    taken, within bounds and rounded to ``1 + 2/j``, whose powers are multiplications.

    Args:
        n: fan-in, at least 2.
        sparsity: target of the layer, in [0, 1).
    """
    low, high = _AUTO_P
    m = max((1.0 - sparsity) * n, float(_FEWEST_INPUTS))
    hoyer = (math.sqrt(n) - math.sqrt(m)) / (math.sqrt(n) - 1.0)
    if hoyer <= predicted_hoyer(high, n):
        return high
    p = low if hoyer >= predicted_hoyer(low, n) else p_for(hoyer, n)
    return 1.0 + 2.0 / round(2.0 / (p - 1.0))


def limit(shape: float, p: float) -> float:
    """Return the infinite-n closed form of ``E[‖w‖₁/‖w‖₂] / √n``: ``Γ(k+a) / √(Γ(k) Γ(k+2a))``.

    Args:
        shape: k > 0 of the features' Gamma distribution.
        p: exponent of the sphere, above 1.
    """
    a = 1.0 / (p - 1.0)
    lg = math.lgamma
    return math.exp(lg(shape + a) - 0.5 * (lg(shape) + lg(shape + 2 * a)))


def hoyer_limit(n: int, shape: float, p: float) -> float:
    """Return Hoyer's measure by the infinite-n closed form; it exceeds 1 for small p and n."""
    root = math.sqrt(n)
    return root * (1.0 - limit(shape, p)) / (root - 1.0)


@lru_cache(maxsize=4096)
def hoyer_expected(n: int, shape: float, p: float, sparsity: float = 0.0) -> float:
    """Return the expectation of Hoyer's measure over rows of exactly n entries.

    With S = Σw², ``1/√S = π^(-1/2) ∫ t^(-1/2) exp(-tS) dt``; independence turns the expectation
    of ``‖w‖₁/√S`` into ``n π^(-1/2) ∫ t^(-1/2) E[w exp(-tw²)] E[exp(-tw²)]^(n-1) dt``, which is
    integrated over two logarithmic grids. Within 0.01 of simulation (tested).

    Args:
        n: fan-in, at least 2.
        shape: k > 0.
        p: exponent of the sphere, above 1.
        sparsity: fraction of the weights that is set to zero, the smallest first, in [0, 1); rows
            that lose all are left out, as they are in reports.
    """
    a = 1.0 / (p - 1.0)
    mass, log_w = _features(shape, a, sparsity)
    # log t runs from where t S vanishes up to where some entry almost surely has t w² >> 1.
    survival = mass.flip(0).cumsum(0).flip(0)
    certain = survival >= min(60.0 / max(n - 1, 1), float(survival[0]))
    last = int(certain.nonzero()[-1])
    low, high = -math.log(n) - 30.0, -2.0 * float(log_w[last]) + 4.0
    log_t = torch.linspace(low, high, _NODES_T, dtype=torch.float64)
    tw2 = (log_t[:, None] + 2.0 * log_w).exp()
    gone = (-torch.expm1(-tw2) * mass).sum(1).clamp_max(1.0 - 1e-15)
    one = ((log_w - tw2).exp() * mass).sum(1)
    rest = ((n - 1) * torch.log1p(-gone)).exp()
    integral = torch.trapezoid((0.5 * log_t).exp() * one * rest, log_t)
    alive = -math.expm1(n * math.log1p(-min(float(mass.sum()), 1.0 - 1e-15)))
    ratio = n / math.sqrt(math.pi) * float(integral) / alive
    root = math.sqrt(n)
    return min(1.0, max(0.0, (root - ratio) / (root - 1.0)))


def _features(shape: float, a: float, sparsity: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities on a grid of log v, and log w there relative to the largest w."""
    high = math.log(shape + 40.0 + 12.0 * math.sqrt(shape))
    # What lies below the 1e-9 quantile, or e^-160 times the largest weight, does not count.
    low = max((math.log(1e-9) + math.lgamma(shape + 1.0)) / shape, high - 160.0 / a)
    x = torch.linspace(low, high, _NODES_V, dtype=torch.float64)
    mass = (shape * x - x.exp() - math.lgamma(shape)).exp() * (x[1] - x[0])
    if sparsity > 0:
        kept = mass.flip(0).cumsum(0).flip(0)
        # At the node that the threshold divides, the part above it stays.
        mass = torch.minimum(mass, (1.0 - sparsity - (kept - mass)).clamp_min(0.0))
    positive = mass > 0
    return mass[positive], a * (x[positive] - high)
