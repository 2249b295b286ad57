"""What p does to Hoyer's measure, before anything is trained (LpSS, arXiv:2103.16013, §3).

A weight on the Lp sphere is a power of a feature: ``|w| = |v|^a`` with ``a = 1/(p-1)``. If the
features of a row are independent and Gamma distributed with shape k, the expectation of Hoyer's
measure over rows of n entries follows, with or without the smallest entries cut to zero. The
shape that trained rows have was calibrated on networks other than those it is tested on
(``benchmarks/hoyer.py``).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.sparsity.lp_geometry import P_RANGES

# Shape of the trained features, ``k = (k0 + k1 a²)(1 + c/Λ)``, fitted to the calibration networks.
_SHAPE, _START = (0.793, 0.0732), 9.09
#: Λ of a training of the default length: 2,000 steps of a peak η of 0.01 on a cosine.
TYPICAL_TRAVEL = 10.0
# What auto chooses from. Where a sparse row would be left with fewer inputs than this many, it
# aims at this many. On held-out data p above 1.5 was never better (benchmarks/tune.py), and p
# below 1.2 was worse wherever a network is cut to a fiftieth and less (benchmarks/stability.py).
_FEWEST_INPUTS = 8
_AUTO_P = (1.2, 1.5)
_NODES_V, _NODES_T = 600, 400


def shape(p: float, travel: float = TYPICAL_TRAVEL) -> float:
    """Return the shape k that the features of trained rows have, for p > 1.

    With ``a = 1/(p-1)``, k grows as ``k0 + k1 a²``: the variance of log|w|, about ``a²/k``, is
    bounded however small p is. Short trainings leave rows flatter, by ``1 + c/Λ``.

    Args:
        p: exponent of the sphere, above 1.
        travel: Λ, the sum of the steps η over the training: how far rows may move, in radii.
    """
    a = 1.0 / (p - 1.0)
    # Flatter than this no longer shows in any digit.
    return min((_SHAPE[0] + _SHAPE[1] * a * a) * (1.0 + _START / max(travel, 1e-9)), 1e4)


def predicted_hoyer(
    p: float, n: int, sparsity: float = 0.0, travel: float = TYPICAL_TRAVEL
) -> float:
    """Predict the mean Hoyer of a layer trained on spheres of p > 1, from what is known before.

    Args:
        p: exponent of the sphere, above 1.
        n: fan-in, at least 2.
        sparsity: of the layer, its smallest weights cut, in [0, 1).
        travel: Λ, the sum of the steps η over the training.
    """
    return hoyer_expected(n, shape(p, travel), p, sparsity)


def p_for(hoyer: float, n: int, name: str = "a layer") -> float:
    """Return the p > 1 whose predicted Hoyer is the wished one: the inverse of the prediction.

    Args:
        hoyer: wished Hoyer of the layer without pruning.
        n: fan-in, at least 2.
        name: of the layer, for the message.

    Raises:
        InputError: no p from 1.03 to 4 is predicted to give it.
    """
    (_, _), (low, high) = P_RANGES
    least, most = predicted_hoyer(high, n), predicted_hoyer(low, n)
    if not least <= hoyer <= most:
        raise InputError(
            f"no p gives {name} (fan-in {n}) a Hoyer of {hoyer:g}",
            f"wish for {math.ceil(100 * least) / 100:.2f} to {math.floor(100 * most) / 100:.2f}",
        )
    # Bisection over a = 1/(p-1), in which Hoyer grows.
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
    """Choose p for a target: rows that are already as unequal as the cut will make them.

    A row that keeps m equal weights of n has Hoyer ``(√n - √m)/(√n - 1)``, the least that n - m
    zeros allow. The p predicted to give that much without pruning is taken, within bounds, as
    ``1 + 2/j``: its powers are multiplications.
    """
    low, high = _AUTO_P
    m = max((1.0 - sparsity) * n, float(_FEWEST_INPUTS))
    wished = (math.sqrt(n) - math.sqrt(m)) / (math.sqrt(n) - 1.0)
    if wished <= predicted_hoyer(high, n):
        return high
    p = low if wished >= predicted_hoyer(low, n) else p_for(wished, n)
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
    """Return Hoyer's measure by the infinite-n closed form; above 1 for small p and n."""
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
        sparsity: part of the weights that is cut, the smallest first, in [0, 1); rows that lose
            everything are left out, as they are in reports.
    """
    a = 1.0 / (p - 1.0)
    mass, log_w = _features(shape, a, sparsity)
    # log t runs from where t S is nothing up to where some entry surely has t w² >> 1.
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
    """Return probabilities on a grid of log v, and log w there, relative to the largest."""
    high = math.log(shape + 40.0 + 12.0 * math.sqrt(shape))
    # Below the 1e-9 quantile, or e^-160 times the largest weight, nothing counts.
    low = max((math.log(1e-9) + math.lgamma(shape + 1.0)) / shape, high - 160.0 / a)
    x = torch.linspace(low, high, _NODES_V, dtype=torch.float64)
    mass = (shape * x - x.exp() - math.lgamma(shape)).exp() * (x[1] - x[0])
    if sparsity > 0:
        kept = mass.flip(0).cumsum(0).flip(0)
        # Of the node that the cut goes through, the part above it stays.
        mass = torch.minimum(mass, (1.0 - sparsity - (kept - mass)).clamp_min(0.0))
    positive = mass > 0
    return mass[positive], a * (x[positive] - high)
